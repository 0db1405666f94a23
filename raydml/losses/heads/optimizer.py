"""One update of class rows, and the updates that rows missed while no batch met them: made up for when they are met.

A row that a step does not touch has gradient zero, and a dense optimiser would still move it: by momentum, by decay of
its moments and of itself. `catch_up` does all of that at once, for each row from its own last update. Formulas and
order of operations are those of torch.optim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from raydml.spec import Adam as AdamSpec
from raydml.spec import AdamW, OptimizerSpec, Sgd

Slots = dict[str, Tensor]  # by name, each shaped as the rows
Rate = Callable[[int], float]  # learning rate of the update after so many others
ROWS = 2048  # updated at a time: what is computed on the way stays small
FORGOTTEN = 1e-12  # an update so small beside the first one that a row missed is left out


class RowOptimizer(Protocol):
    """An optimiser of rows (n, numbers) in place."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of its slots."""
        ...

    def step(self, rows: Tensor, slots: Slots, gradient: Tensor, count: int, rate: float) -> None:
        """One update, after `count` others."""
        ...

    def catch_up(self, rows: Tensor, slots: Slots, counts: Tensor, now: int, rate: Rate) -> None:
        """As if each row had had gradient zero in the updates from `counts`, (n,), to `now`."""
        ...


def build_optimizer(spec: OptimizerSpec) -> RowOptimizer:
    """The optimiser of the spec, for rows."""
    return RowSgd(spec) if isinstance(spec, Sgd) else RowAdam(spec)


def blocks(count: int) -> Iterator[slice]:
    """Rows a block at a time."""
    yield from (slice(start, min(start + ROWS, count)) for start in range(0, count, ROWS))


class RowSgd:
    """torch.optim.SGD. Without gradient a row and its momentum change linearly: missed updates are one 2 x 2 matrix."""

    def __init__(self, spec: Sgd) -> None:
        self._momentum, self._decay, self._nesterov = spec.momentum, spec.weight_decay, spec.nesterov
        self.names = ("momentum_buffer",) if spec.momentum else ()

    def step(self, rows: Tensor, slots: Slots, gradient: Tensor, count: int, rate: float) -> None:
        """See RowOptimizer."""
        for block in blocks(len(rows)):
            row, change = rows[block], gradient[block]
            if self._decay:
                change = change.add(row, alpha=self._decay)
            if self._momentum:
                momentum = slots["momentum_buffer"][block].mul_(self._momentum).add_(change)
                change = change.add(momentum, alpha=self._momentum) if self._nesterov else momentum
            row.add_(change, alpha=-rate)

    def catch_up(self, rows: Tensor, slots: Slots, counts: Tensor, now: int, rate: Rate) -> None:
        """See RowOptimizer; exact, but for rounding."""
        first = int(counts.min()) if len(counts) else now
        if first == now:
            return
        found = torch.tensor(self._maps(first, now, rate), dtype=torch.float64)[counts.cpu() - first]
        maps = found.to(rows.device, rows.dtype).unsqueeze(2)  # (n, 4, 1)
        for block in blocks(len(rows)):
            row, a, b, c, d = rows[block], *maps[block].unbind(1)
            if not self._momentum:
                row.mul_(a)
                continue
            momentum = slots["momentum_buffer"][block]
            moved = a * row + b * momentum
            momentum.mul_(d).add_(c * row)
            row.copy_(moved)

    def _maps(self, first: int, now: int, rate: Rate) -> list[tuple[float, float, float, float]]:
        """From each count, `first` to `now`: a, b, c, d with row' = a row + b momentum, momentum' = c row + d momentum.

        One update: momentum' = m momentum + w row, row' = row - lr momentum', or row - lr (w row + m momentum') with
        nesterov, where m is the momentum and w the decay.
        """
        m, w = self._momentum, self._decay
        a, b, c, d = 1.0, 0.0, 0.0, 1.0
        maps = [(a, b, c, d)]
        for count in reversed(range(first, now)):
            lr = rate(count)
            own, other = (1 - lr * w * (1 + m), -lr * m * m) if self._nesterov else (1 - lr * w, -lr * m)
            a, b, c, d = a * own + b * w, a * other + b * m, c * own + d * w, c * other + d * m
            maps.append((a, b, c, d))
        return maps[::-1]


class RowAdam:
    """torch.optim.Adam and AdamW. Missed updates are taken one by one, for that is what their square root asks for.

    Of AdamW, and of Adam without decay, only as many as the first moment lives: the later ones, each smaller than 1e-12
    of the first, are left out, and what they would have done to moments and to decay is a power.
    """

    names = ("exp_avg", "exp_avg_sq")

    def __init__(self, spec: AdamSpec) -> None:
        self._betas, self._eps, self._decay = spec.betas, spec.eps, spec.weight_decay
        self._decoupled = isinstance(spec, AdamW)
        shrink = self._betas[0] / math.sqrt(self._betas[1]) if self._betas[1] else 1.0  # of an update, from one to next
        mortal = shrink < 1 and (self._decoupled or not self._decay)
        self._lives = math.ceil(math.log(FORGOTTEN) / math.log(shrink)) if mortal and shrink else 1 if mortal else None

    def step(self, rows: Tensor, slots: Slots, gradient: Tensor, count: int, rate: float) -> None:
        """See RowOptimizer."""
        for block in blocks(len(rows)):
            first, second = (slots[name][block] for name in self.names)
            row, change = rows[block], gradient[block]
            if self._decoupled:
                row.mul_(1 - rate * self._decay)
            elif self._decay:
                change = change.add(row, alpha=self._decay)
            first.lerp_(change, 1 - self._betas[0])
            second.mul_(self._betas[1]).addcmul_(change, change, value=1 - self._betas[1])
            self._move(row, first, second, count, rate)

    def _move(self, row: Tensor, first: Tensor, second: Tensor, count: int, rate: float) -> None:
        unbiased = math.sqrt(1 - self._betas[1] ** (count + 1))
        spread = (second.sqrt() / unbiased).add_(self._eps)
        row.addcdiv_(first, spread, value=-rate / (1 - self._betas[0] ** (count + 1)))

    def catch_up(self, rows: Tensor, slots: Slots, counts: Tensor, now: int, rate: Rate) -> None:
        """See RowOptimizer; the oldest rows first, so that those which miss an update stand side by side."""
        first = int(counts.min()) if len(counts) else now
        if first == now:
            return
        order = counts.argsort(stable=True)
        since = counts[order]
        sorted_rows, *moments = (value[order] for value in (rows, *(slots[name] for name in self.names)))
        ends = torch.searchsorted(since, torch.arange(first, now, device=since.device), right=True).tolist()
        for count, stop in zip(range(first, now), ends, strict=True):
            old = count - self._lives - first if self._lives is not None else -1
            start = ends[old] if old >= 0 else 0
            if start < stop:
                self._miss(sorted_rows[start:stop], moments[0][start:stop], moments[1][start:stop], count, rate(count))
        if self._lives is not None and now - first > self._lives:
            self._forget(sorted_rows, moments, since, now, rate)
        for target, value in zip((rows, *(slots[name] for name in self.names)), (sorted_rows, *moments), strict=True):
            target[order] = value

    def _miss(self, row: Tensor, first: Tensor, second: Tensor, count: int, rate: float) -> None:
        """One update without gradient."""
        if self._decoupled:
            row.mul_(1 - rate * self._decay)
        if self._decay and not self._decoupled:
            change = row * self._decay
            first.lerp_(change, 1 - self._betas[0])
            second.mul_(self._betas[1]).addcmul_(change, change, value=1 - self._betas[1])
        else:
            first.mul_(self._betas[0])
            second.mul_(self._betas[1])
        self._move(row, first, second, count, rate)

    def _forget(self, rows: Tensor, moments: list[Tensor], since: Tensor, now: int, rate: Rate) -> None:
        """What the updates after the life of the first moment leave of rows and moments."""
        assert self._lives is not None
        first = int(since.min())
        left = [1.0]  # of a row, by decay, for each count from `now` down
        for count in reversed(range(first + self._lives, now)):
            left.append(left[-1] * (1 - rate(count) * self._decay if self._decoupled else 1))
        missed = (now - since - self._lives).clamp(min=0)  # (n,)
        rows.mul_(torch.tensor(left, dtype=torch.float64)[missed.cpu()].to(rows).unsqueeze(1))
        for beta, moment in zip(self._betas, moments, strict=True):
            moment.mul_(torch.pow(beta, missed.double()).to(moment).unsqueeze(1))
