"""What a loss asks of every row's scores, collected tile by tile, and the slope of each answer.

A loss is stated as statistics of rows (a log-sum-exp over negatives, a sum over positives, the hardest positive ...)
and a function of them. The engine collects the statistics without ever holding B x B scores, differentiates the
function, and asks each statistic for d(answer of the anchor) / d(score) of every pair.

Two rows meet in one tile alone, which is seen from both of its sides: its rows as anchors, and its columns. Most
statistics say what they do for one side; one that can serve both at once, in fewer passes over the tile, does so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raydml.losses.tiled.layout import Over, Tile

Answers = Mapping[str, Tensor]


@dataclass(frozen=True)
class Pairs:
    """A tile of scores (a, r) seen from one side: anchors, its rows, with the rest, its columns; `turned`: the reverse.

    `answers` are the earlier ones of all rows.
    """

    tile: Tile
    turned: bool
    scores: Tensor
    answers: Answers

    @property
    def anchors(self) -> slice:
        """Where the anchors are in the sorted batch."""
        return self.tile.columns if self.turned else self.tile.rows

    @property
    def rest(self) -> slice:
        """Where the rest is."""
        return self.tile.rows if self.turned else self.tile.columns

    def own(self, name: str) -> Tensor:
        """An earlier answer of the anchors, (a, 1), or (a, 1, q) where it is several numbers."""
        return self.answers[name][self.anchors].unsqueeze(1)

    def other(self, name: str) -> Tensor:
        """That of the rest, (1, r) or (1, r, q)."""
        return self.answers[name][self.rest].unsqueeze(0)

    def outside(self, over: Over) -> Tensor | None:
        """The pairs that do not belong, (a, r)."""
        outside = self.tile.outside[over]
        return outside.T if self.turned and outside is not None else outside

    def keep(self, values: Tensor, over: Over, fill: float) -> Tensor:
        """Values (..., a, r) with those that do not belong filled, in place."""
        outside = self.outside(over)
        return values if outside is None else values.masked_fill_(outside, fill)

    def none(self, over: Over) -> bool:
        """Whether the tile as a whole does not belong."""
        return over == "positives" and self.tile.same is None


Values = Callable[[Pairs], Tensor]
Slopes = Callable[[Pairs], Tensor | float]


@dataclass(frozen=True)
class Statistic(ABC):
    """One number of each row, or a few, over its positives, its negatives or all other rows.

    `value` gives the (a, r) numbers that are collected, as a fresh tensor; `slope` their derivatives by the scores,
    None where no gradient flows.
    """

    over: Over
    value: Values
    slope: Slopes | None = None

    @abstractmethod
    def start(self, units: Tensor) -> Tensor:
        """The state of rows (B, ...) that have seen nothing."""

    @abstractmethod
    def collect(self, state: Tensor, sides: Sequence[Pairs]) -> None:
        """Take one more tile into the state of its anchors."""

    def finish(self, states: Tensor) -> Tensor:
        """The answer, (B,) or (B, q), from the states after the tiles of each slice, (V, B, ...)."""
        return states.sum(0)

    def force(self, answer: Tensor, gradient: Tensor) -> Tensor:
        """What `push` needs of each row, (B,) or (B, k), from its answer and dL/d(answer), (B,) or (B, q) each."""
        return gradient

    @abstractmethod
    def push(self, sides: Sequence[Pairs], forces: Sequence[Tensor]) -> Tensor:
        """dL/d(score) of each pair, (r, c) as the first side has it; forces are of the anchors, (a, 1) or (a, 1, k)."""


class OneSided(Statistic):
    """A statistic that takes the sides of a tile one after the other."""

    def collect(self, state: Tensor, sides: Sequence[Pairs]) -> None:
        """See Statistic."""
        for pairs in sides:
            anchors = state[pairs.anchors]
            anchors.copy_(self.add(anchors, pairs))

    @abstractmethod
    def add(self, state: Tensor, pairs: Pairs) -> Tensor:
        """The state of the anchors, (a, ...), after one more tile."""

    def push(self, sides: Sequence[Pairs], forces: Sequence[Tensor]) -> Tensor:
        """See Statistic."""
        of_rows, of_columns = (self.slopes(pairs, force) for pairs, force in zip(sides, forces, strict=True))
        return sides[0].keep(of_rows + of_columns.T, self.over, 0)  # the same pairs belong on both sides

    @abstractmethod
    def slopes(self, pairs: Pairs, force: Tensor) -> Tensor:
        """dL/d(score) of each pair, (a, r) or (a, 1), by the force on its anchor; of those that do not belong, any."""


class Sum(Statistic):
    """sum_j v_ij of values that do not depend on who is the anchor."""

    def start(self, units: Tensor) -> Tensor:
        """See Statistic."""
        return units.new_zeros(units.shape[0])

    def collect(self, state: Tensor, sides: Sequence[Pairs]) -> None:
        """See Statistic."""
        values = sides[0].keep(self.value(sides[0]), self.over, 0)
        for dim, pairs in zip((1, 0), sides, strict=True):
            state[pairs.anchors] += values.sum(dim)

    def push(self, sides: Sequence[Pairs], forces: Sequence[Tensor]) -> Tensor:
        """See Statistic."""
        assert self.slope is not None
        return sides[0].keep((forces[0] + forces[1].T) * self.slope(sides[0]), self.over, 0)


@dataclass(frozen=True)
class Sums(OneSided):
    """sum_j v_ij of several values, (count, a, r), that depend on the anchor; the slope is of the first."""

    count: int = 1

    def start(self, units: Tensor) -> Tensor:
        """See Statistic: (B, count)."""
        return units.new_zeros(units.shape[0], self.count)

    def add(self, state: Tensor, pairs: Pairs) -> Tensor:
        """See OneSided."""
        return state + pairs.keep(self.value(pairs), self.over, 0).sum(2).T

    def force(self, answer: Tensor, gradient: Tensor) -> Tensor:
        """See Statistic."""
        return gradient[:, 0]

    def slopes(self, pairs: Pairs, force: Tensor) -> Tensor:
        """See OneSided."""
        assert self.slope is not None
        return self.slope(pairs) * force


class Costs(Statistic):
    """(sum_j max(0, v_ij), how many of them are above zero), of values that do not depend on who is the anchor."""

    def start(self, units: Tensor) -> Tensor:
        """See Statistic: (B, 2)."""
        return units.new_zeros(units.shape[0], 2)

    def collect(self, state: Tensor, sides: Sequence[Pairs]) -> None:
        """See Statistic."""
        costs = self._costs(sides[0])
        for number in range(2):
            for dim, pairs in zip((1, 0), sides, strict=True):
                state[pairs.anchors, number] += costs.sum(dim)
            costs.sign_()

    def force(self, answer: Tensor, gradient: Tensor) -> Tensor:
        """See Statistic: the count has no slope."""
        return gradient[:, 0]

    def push(self, sides: Sequence[Pairs], forces: Sequence[Tensor]) -> Tensor:
        """See Statistic."""
        assert self.slope is not None
        slope = self.slope(sides[0])  # where it is one number, this order costs no pass over the tile
        return self._costs(sides[0]).sign_().mul_(forces[0] * slope + forces[1].T * slope)

    def _costs(self, pairs: Pairs) -> Tensor:
        return pairs.keep(self.value(pairs), self.over, 0).relu_()


class Largest(OneSided):
    """(max_j v_ij, its place in the sorted batch): of equals the first; (-inf, -1) for a row without pairs.

    The slope is of v.
    """

    def start(self, units: Tensor) -> Tensor:
        """See Statistic: (B, 2)."""
        return units.new_tensor([-torch.inf, -1.0]).repeat(units.shape[0], 1)

    def add(self, state: Tensor, pairs: Pairs) -> Tensor:
        """See OneSided."""
        values, where = pairs.keep(self.value(pairs), self.over, -torch.inf).max(1)
        rest = torch.where(values > -torch.inf, pairs.rest.start + where, -1).to(values.dtype)
        return self.finish(torch.stack([state, torch.stack([values, rest], dim=1)]))

    def finish(self, states: Tensor) -> Tensor:
        """See Statistic."""
        values, rest = states.unbind(2)  # (V, B)
        largest = values.amax(0)
        first = rest.masked_fill(values < largest, torch.inf).amin(0)
        return torch.stack([largest, first], dim=1)

    def force(self, answer: Tensor, gradient: Tensor) -> Tensor:
        """See Statistic: the place and what pushes there, (B, 2)."""
        return torch.stack([answer[:, 1], gradient[:, 0]], dim=1)

    def slopes(self, pairs: Pairs, force: Tensor) -> Tensor:
        """See OneSided."""
        assert self.slope is not None
        places, pressure = force.unbind(-1)
        numbers = torch.arange(pairs.rest.start, pairs.rest.stop, device=places.device)
        return (numbers == places) * (self.slope(pairs) * pressure)
