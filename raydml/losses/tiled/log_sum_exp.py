"""log sum_j exp(v_ij) of every row, streamed; in few passes over a tile where v is linear in the score.

Fewest where the score is bounded: of unit vectors, at temperatures that are not very low.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raydml.losses.tiled.layout import Over
from raydml.losses.tiled.reduction import add_exponentials
from raydml.losses.tiled.scores import Score
from raydml.losses.tiled.statistics import OneSided, Pairs, Statistic

NEAR = 40.0  # exponents this close can share one shift: e^40 and sums of e^-40 lose nothing in float32


class LogSumExp(OneSided):
    """log sum_j exp(v_ij), shifted by the largest; the smallest finite number for a row without pairs."""

    def start(self, units: Tensor) -> Tensor:
        """See Statistic: (B, 2), a shift and the sum of exponentials below it."""
        state = units.new_zeros(units.shape[0], 2)
        state[:, 0] = torch.finfo(units.dtype).min
        return state

    def add(self, state: Tensor, pairs: Pairs) -> Tensor:
        """See OneSided."""
        values = pairs.keep(self.value(pairs), self.over, -torch.inf)
        return torch.stack(add_exponentials(state[:, 0], state[:, 1], values), dim=1)

    def finish(self, states: Tensor) -> Tensor:
        """See Statistic."""
        shifts, sums = states.unbind(2)  # (V, B)
        shift = shifts.amax(0)
        total = (sums * (shifts - shift).exp()).sum(0)
        return torch.where(total > 0, shift + total.log(), torch.finfo(states.dtype).min)

    def force(self, answer: Tensor, gradient: Tensor) -> Tensor:
        """See Statistic: (B, 2)."""
        return torch.stack([answer, gradient], dim=1)

    def slopes(self, pairs: Pairs, force: Tensor) -> Tensor:
        """See OneSided: the softmax times the slope of the value."""
        assert self.slope is not None
        answer, pressure = force.unbind(-1)
        return self.value(pairs).sub_(answer).exp_().mul_(self.slope(pairs) * pressure)


@dataclass(frozen=True)
class LinearLogSumExp(LogSumExp):
    """LogSumExp of factor x score + shift, in fewer passes over a tile.

    Where the exponents of a tile are near each other one shift serves all of its rows and columns, and one exponential
    each pair: a sum below a shift that is up to NEAR too large is as exact as one below the largest exponent.
    """

    factor: float = 1.0
    shift: float = 0.0

    def collect(self, state: Tensor, sides: Sequence[Pairs]) -> None:
        """See Statistic."""
        scores = sides[0].scores
        lowest, highest = (float(end) * self.factor + self.shift for end in scores.aminmax())
        if sides[0].outside(self.over) is not None or abs(highest - lowest) > NEAR:
            super().collect(state, sides)
            return
        shift = state.new_tensor(max(lowest, highest))
        exponentials = self._exponentials(scores, shift)
        for dim, pairs in zip((1, 0), sides, strict=True):
            before, sums = state[pairs.anchors].unbind(1)
            larger = torch.maximum(before, shift)
            sums = sums * (before - larger).exp() + exponentials.sum(dim) * (shift - larger).exp()
            state[pairs.anchors] = torch.stack([larger, sums], dim=1)

    def push(self, sides: Sequence[Pairs], forces: Sequence[Tensor]) -> Tensor:
        """See Statistic."""
        ends = [force[..., 0].aminmax() for force in forces]
        lowest, highest = min(float(end.min) for end in ends), max(float(end.max) for end in ends)
        if highest - lowest > NEAR:
            return super().push(sides, forces)
        middle = forces[0].new_tensor((lowest + highest) / 2)
        of_rows, of_columns = ((middle - force[..., 0]).exp_() * force[..., 1] * self.factor for force in forces)
        slopes = self._exponentials(sides[0].scores, middle).mul_(of_rows + of_columns.T)
        return sides[0].keep(slopes, self.over, 0)

    def slopes(self, pairs: Pairs, force: Tensor) -> Tensor:
        """See OneSided."""
        answer, pressure = force.unbind(-1)
        return self._exponentials(pairs.scores, answer).mul_(pressure * self.factor)

    def _exponentials(self, scores: Tensor, below: Tensor) -> Tensor:
        return torch.add(self.shift - below, scores, alpha=self.factor).exp_()


@dataclass(frozen=True)
class BoundedLogSumExp(Statistic):
    """LogSumExp of factor x score + shift where none is above `highest` or more than NEAR below: one shift for all."""

    factor: float = 1.0
    shift: float = 0.0
    highest: float = 0.0

    def start(self, units: Tensor) -> Tensor:
        """See Statistic: (B,), the sum of exponentials below the shift."""
        return units.new_zeros(units.shape[0])

    def collect(self, state: Tensor, sides: Sequence[Pairs]) -> None:
        """See Statistic."""
        exponentials = sides[0].keep(self._exponentials(sides[0].scores), self.over, 0)
        for dim, pairs in zip((1, 0), sides, strict=True):
            state[pairs.anchors] += exponentials.sum(dim)

    def finish(self, states: Tensor) -> Tensor:
        """See Statistic."""
        total = states.sum(0)
        return torch.where(total > 0, self.highest + total.log(), torch.finfo(states.dtype).min)

    def force(self, answer: Tensor, gradient: Tensor) -> Tensor:
        """See Statistic."""
        return (self.highest - answer).exp_() * gradient * self.factor

    def push(self, sides: Sequence[Pairs], forces: Sequence[Tensor]) -> Tensor:
        """See Statistic."""
        slopes = self._exponentials(sides[0].scores).mul_(forces[0] + forces[1].T)
        return sides[0].keep(slopes, self.over, 0)

    def _exponentials(self, scores: Tensor) -> Tensor:
        return torch.add(scores.new_tensor(self.shift - self.highest), scores, alpha=self.factor).exp_()


def linear_log_sum_exp(over: Over, score: Score, factor: float, shift: float = 0.0) -> Statistic:
    """log sum_j exp(factor x score_ij + shift)."""

    def value(pairs: Pairs) -> Tensor:
        return pairs.scores * factor + shift

    def slope(pairs: Pairs) -> float:
        return factor

    if score.bounds is not None:
        lowest, highest = sorted(factor * end + shift for end in score.bounds)
        if highest - lowest <= NEAR:
            return BoundedLogSumExp(over, value, slope, factor=factor, shift=shift, highest=highest)
    return LinearLogSumExp(over, value, slope, factor=factor, shift=shift)
