"""What a loss asks of every row's scores, collected tile by tile, and the slope of each answer.

A loss is stated as statistics of rows (a log-sum-exp over negatives, a sum over positives, the hardest positive ...)
and a function of them. The engine collects the statistics without ever holding B x B scores, differentiates the
function, and asks each statistic for d(answer of the anchor) / d(score) of every pair.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raydml.losses.tiled.reduction import add_exponentials

Answers = Mapping[str, Tensor]
Over = Literal["positives", "negatives", "others"]


@dataclass(frozen=True)
class Pairs:
    """A tile of scores (r, c) seen from its anchors: its rows, or (the other way round) its columns.

    Everything broadcasts to (r, c): `own` and `other` hold earlier answers of the anchors and of the rest, (r, 1) or
    (1, c), with a last axis more for answers of several numbers; `rest` and `places` number the rest among all rows and
    within their class. `positive` and `itself` are None where the tile has negatives alone.
    """

    scores: Tensor
    own: Answers
    other: Answers
    rest: Tensor
    places: Tensor
    positive: Tensor | None
    itself: Tensor | None

    def outside(self, over: str) -> Tensor | None:
        """The pairs that do not belong, (r, c)."""
        if self.positive is None or self.itself is None:
            return None
        return {"positives": ~self.positive, "negatives": self.positive | self.itself, "others": self.itself}[over]

    def keep(self, values: Tensor, over: str, fill: float) -> Tensor:
        """Values (r, c) with those that do not belong filled."""
        outside = self.outside(over)
        return values if outside is None else values.masked_fill(outside, fill)

    def none(self, over: str) -> bool:
        """Whether the tile as a whole does not belong."""
        return over == "positives" and self.positive is None


Values = Callable[[Pairs], Tensor]
Slopes = Callable[[Pairs], Tensor | float]


@dataclass(frozen=True)
class Statistic(ABC):
    """One number of each row, over its positives, its negatives or all other rows.

    `value` gives the (r, c) numbers that are collected; `slope` their derivatives by the scores, None where no gradient
    flows. `mutual`: the slope is the same whichever row of a pair is the anchor, so that it is asked for once.
    """

    over: Over
    value: Values
    slope: Slopes | None = None
    mutual: bool = False

    @abstractmethod
    def start(self, scores: Tensor, places: int) -> Tensor:
        """The state of rows (r, ...) that have seen nothing; `places` is the size of the largest class."""

    @abstractmethod
    def add(self, state: Tensor, pairs: Pairs) -> Tensor:
        """The state after one more tile whose rows are the anchors."""

    def finish(self, state: Tensor) -> Tensor:
        """The answer, (r,) or (r, q)."""
        return state

    def force(self, gradient: Tensor) -> Tensor:
        """The part of dL/d(answer), (r, 1) or (r, 1, q), that reaches the scores."""
        return gradient

    @abstractmethod
    def slopes(self, pairs: Pairs, answer: Tensor, force: Tensor) -> Tensor:
        """dL/d(score) of each pair, (r, c), from the force on its anchor; pairs that do not belong are undefined."""


class Sum(Statistic):
    """sum_j v_ij."""

    def start(self, scores: Tensor, places: int) -> Tensor:
        """See Statistic."""
        return scores.new_zeros(scores.shape[0])

    def add(self, state: Tensor, pairs: Pairs) -> Tensor:
        """See Statistic."""
        return state + pairs.keep(self.value(pairs), self.over, 0).sum(1)

    def slopes(self, pairs: Pairs, answer: Tensor, force: Tensor) -> Tensor:
        """See Statistic."""
        assert self.slope is not None
        return self.slope(pairs) * force


class LogSumExp(Statistic):
    """log sum_j exp(v_ij), shifted by the largest; the smallest finite number for a row without pairs."""

    def start(self, scores: Tensor, places: int) -> Tensor:
        """See Statistic: (r, 2), the largest value and the sum of exponentials below it."""
        state = scores.new_zeros(scores.shape[0], 2)
        state[:, 0] = torch.finfo(scores.dtype).min
        return state

    def add(self, state: Tensor, pairs: Pairs) -> Tensor:
        """See Statistic."""
        values = pairs.keep(self.value(pairs), self.over, -torch.inf)
        return torch.stack(add_exponentials(state[:, 0], state[:, 1], values), dim=1)

    def finish(self, state: Tensor) -> Tensor:
        """See Statistic."""
        empty = torch.finfo(state.dtype).min
        return torch.where(state[:, 1] > 0, state[:, 0] + state[:, 1].log(), empty)

    def slopes(self, pairs: Pairs, answer: Tensor, force: Tensor) -> Tensor:
        """See Statistic: the softmax times the slope of the value."""
        assert self.slope is not None
        return self.value(pairs).sub_(answer).exp_().mul_(self.slope(pairs) * force)


@dataclass(frozen=True)
class LinearLogSumExp(LogSumExp):
    """LogSumExp of factor x score + shift, in fewer passes over a tile."""

    factor: float = 1.0
    shift: float = 0.0

    def add(self, state: Tensor, pairs: Pairs) -> Tensor:
        """See Statistic."""
        if pairs.outside(self.over) is not None:
            return super().add(state, pairs)
        extreme = pairs.scores.amax(1) if self.factor > 0 else pairs.scores.amin(1)
        largest = torch.maximum(state[:, 0], extreme * self.factor + self.shift)  # (r,)
        sums = self._exponentials(pairs, largest.unsqueeze(1)).sum(1)
        return torch.stack([largest, state[:, 1] * (state[:, 0] - largest).exp() + sums], dim=1)

    def slopes(self, pairs: Pairs, answer: Tensor, force: Tensor) -> Tensor:
        """See Statistic."""
        return self._exponentials(pairs, answer).mul_(force * self.factor)

    def _exponentials(self, pairs: Pairs, below: Tensor) -> Tensor:
        return torch.add(self.shift - below, pairs.scores, alpha=self.factor).exp_()


def linear_log_sum_exp(
    over: Literal["positives", "negatives", "others"], factor: float, shift: float = 0.0
) -> LogSumExp:
    """log sum_j exp(factor x score_ij + shift)."""
    return LinearLogSumExp(
        over, lambda pairs: pairs.scores * factor + shift, lambda pairs: factor, factor=factor, shift=shift
    )


class Largest(Statistic):
    """(max_j v_ij, its row j): of equals the first column; (-inf, -1) for a row without pairs. The slope is of v."""

    def start(self, scores: Tensor, places: int) -> Tensor:
        """See Statistic: (r, 2)."""
        return scores.new_tensor([-torch.inf, -1.0]).repeat(scores.shape[0], 1)

    def add(self, state: Tensor, pairs: Pairs) -> Tensor:
        """See Statistic."""
        values, where = pairs.keep(self.value(pairs), self.over, -torch.inf).max(1)
        found = torch.stack([values, pairs.rest.expand_as(pairs.scores)[0, where].to(values.dtype)], dim=1)
        return torch.where((values > state[:, 0]).unsqueeze(1), found, state)

    def force(self, gradient: Tensor) -> Tensor:
        """See Statistic."""
        return gradient[..., 0]

    def slopes(self, pairs: Pairs, answer: Tensor, force: Tensor) -> Tensor:
        """See Statistic."""
        assert self.slope is not None
        return (pairs.rest == answer[..., 1]) * (self.slope(pairs) * force)


class Listed(Statistic):
    """v_ij of every positive, (r, size of the largest class) by place in the class; NaN where there is none."""

    def start(self, scores: Tensor, places: int) -> Tensor:
        """See Statistic."""
        return scores.new_full((scores.shape[0], places), torch.nan)

    def add(self, state: Tensor, pairs: Pairs) -> Tensor:
        """See Statistic."""
        assert pairs.positive is not None
        rows, columns = pairs.positive.nonzero(as_tuple=True)
        state[rows, pairs.places.expand_as(pairs.scores)[rows, columns]] = self.value(pairs)[rows, columns]
        return state

    def slopes(self, pairs: Pairs, answer: Tensor, force: Tensor) -> Tensor:
        """See Statistic."""
        assert self.slope is not None
        wide = force.expand(*pairs.scores.shape, -1)
        places = pairs.places.expand_as(pairs.scores).unsqueeze(2)
        return self.slope(pairs) * wide.gather(2, places).squeeze(2)


class Sums(Statistic):
    """Several sums over the row's pairs at once: `value` gives (r, q), summed over the tile and masked by itself.

    The slope is that of the first sum.
    """

    def start(self, scores: Tensor, places: int) -> Tensor:
        """See Statistic."""
        return scores.new_zeros(())

    def add(self, state: Tensor, pairs: Pairs) -> Tensor:
        """See Statistic."""
        return state + self.value(pairs)

    def force(self, gradient: Tensor) -> Tensor:
        """See Statistic."""
        return gradient[..., 0]

    def slopes(self, pairs: Pairs, answer: Tensor, force: Tensor) -> Tensor:
        """See Statistic."""
        assert self.slope is not None
        return self.slope(pairs) * force
