"""log sum_j exp(v_ij) of every row, streamed; in few passes over a tile where v is linear in the score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raydml.losses.tiled.reduction import add_exponentials
from raydml.losses.tiled.statistics import OneSided, Over, Pairs

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

    def slopes(self, pairs: Pairs, answer: Tensor, force: Tensor) -> Tensor:
        """See OneSided: the softmax times the slope of the value."""
        assert self.slope is not None
        return self.value(pairs).sub_(answer).exp_().mul_(self.slope(pairs) * force)


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
        for dim, pairs in zip((1, 0), sides, strict=False):
            before, sums = state[pairs.anchors].unbind(1)
            larger = torch.maximum(before, shift)
            sums = sums * (before - larger).exp() + exponentials.sum(dim) * (shift - larger).exp()
            state[pairs.anchors] = torch.stack([larger, sums], dim=1)

    def push(self, sides: Sequence[Pairs], answers: Sequence[Tensor], forces: Sequence[Tensor]) -> Tensor:
        """See Statistic."""
        lowest = min(float(answer.min()) for answer in answers)
        highest = max(float(answer.max()) for answer in answers)
        if highest - lowest > NEAR:
            return super().push(sides, answers, forces)
        middle = answers[0].new_tensor((lowest + highest) / 2)
        weights = [
            (middle - answer).exp_() * force * self.factor for answer, force in zip(answers, forces, strict=True)
        ]
        weight = weights[0] if len(weights) == 1 else weights[0] + weights[1].T
        return sides[0].keep(self._exponentials(sides[0].scores, middle).mul_(weight), self.over, 0)

    def slopes(self, pairs: Pairs, answer: Tensor, force: Tensor) -> Tensor:
        """See OneSided."""
        return self._exponentials(pairs.scores, answer).mul_(force * self.factor)

    def _exponentials(self, scores: Tensor, below: Tensor) -> Tensor:
        return torch.add(self.shift - below, scores, alpha=self.factor).exp_()


def linear_log_sum_exp(over: Over, factor: float, shift: float = 0.0) -> LogSumExp:
    """log sum_j exp(factor x score_ij + shift)."""
    return LinearLogSumExp(
        over, lambda pairs: pairs.scores * factor + shift, lambda pairs: factor, factor=factor, shift=shift
    )
