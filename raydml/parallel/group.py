"""The workers that train together: rows gathered in slice order, sums and small values agreed on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from raydml.membership import share


class PeerLost(Exception):
    """A collective did not complete: a worker of the group died, left, or aborted it. The step is undecided."""


@contextmanager
def talking() -> Iterator[None]:
    """Raises PeerLost where a collective within fails; torch.distributed names the reason in many ways."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise PeerLost(str(error)) from error


class Group:
    """One process's place among W workers that share V slices; with W = 1 nothing is communicated.

    `num_slices` is V. The default process group of torch.distributed must span exactly these workers when W > 1.
    Every method that communicates raises PeerLost where another worker is gone. Models and strategies hold the group,
    and the group moves: after `move` they run among other workers, with other slices.
    """

    def __init__(self, rank: int, size: int, num_slices: int) -> None:
        self.num_slices = num_slices
        self.waited = 0.0  # seconds in collectives so far: what a slow worker costs the others
        self.move(rank, [len(share(other, size, num_slices)) for other in range(size)])

    def move(self, rank: int, deal: Sequence[int]) -> None:
        """Take another place: the rank among len(deal) workers, which hold that many slices each, in rank order."""
        assert sum(deal) == self.num_slices and min(deal) > 0, (deal, self.num_slices)
        self.rank = rank
        self.size = len(deal)
        ends = list(accumulate(deal))
        self._shares = [range(end - count, end) for end, count in zip(ends, deal, strict=True)]

    @contextmanager
    def collective(self) -> Iterator[None]:
        """Around every collective: counts the time in it, and raises PeerLost where it fails."""
        started = time.perf_counter()
        with talking():
            yield
        self.waited += time.perf_counter() - started

    @property
    def owned(self) -> range:
        """The slices of this worker."""
        return self._shares[self.rank]

    def share(self, rank: int) -> range:
        """The slices of a worker."""
        return self._shares[rank]

    def vote(self, wishes: Sequence[bool] = ()) -> list[bool]:
        """Returns once every worker has called it: which of the wishes any of them has."""
        if self.size == 1:
            return list(wishes)
        told = torch.tensor([0, *map(int, wishes)], device=self._device)
        with self.collective():
            dist.all_reduce(told, dist.ReduceOp.MAX)
        return [bool(wish) for wish in told[1:].tolist()]

    def gather_slices(self, local: Tensor) -> Tensor:
        """This worker's rows (own slices x S, ...) -> all rows (V x S, ...) in slice order; no gradient flows."""
        rows = local.shape[0] // len(self.owned)
        return self.gather_rows(local, [len(self.share(rank)) * rows for rank in range(self.size)])

    def gather_rows(self, local: Tensor, counts: list[int]) -> Tensor:
        """(counts[rank], ...) of each worker -> (sum(counts), ...) on every worker, in rank order.

        Gloo aborts the process on unequal shapes, so rows are padded to the largest count.
        """
        if self.size == 1:
            return local
        longest = max(counts)
        padding = [0, 0] * (local.dim() - 1) + [0, longest - local.shape[0]]
        padded = functional.pad(local, padding).contiguous()
        everything = padded.new_empty((self.size * longest, *padded.shape[1:]))
        with self.collective():
            dist.all_gather_into_tensor(everything, padded)
        if longest == min(counts):
            return everything
        parts = torch.split(everything, longest)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def exchange(self, rows: Tensor, given: list[int], taken: list[int]) -> Tensor:
        """Rows (sum(given), ...), given[rank] of them for each worker -> (sum(taken), ...), from each in rank order."""
        if self.size == 1:
            return rows
        received = rows.new_empty((sum(taken), *rows.shape[1:]))
        with self.collective():
            dist.all_to_all_single(received, rows.contiguous(), taken, given)
        return received

    def shift(self, rows: Tensor, distance: int, count: int) -> Tensor:
        """Rows for the worker `distance` places on, cyclically -> those (count, ...) of the worker as far back."""
        given, taken = [0] * self.size, [0] * self.size
        given[(self.rank + distance) % self.size] = len(rows)
        taken[(self.rank - distance) % self.size] = count
        return self.exchange(rows, given, taken)

    def all_reduce(self, value: Tensor) -> Tensor:
        """Sum over workers, in place; the order of the sum is the library's."""
        if self.size > 1:
            with self.collective():
                dist.all_reduce(value)
        return value

    def maximum(self, value: Tensor) -> Tensor:
        """The largest of all workers' values, element by element, in place; exact in any order."""
        if self.size > 1:
            with self.collective():
                dist.all_reduce(value, dist.ReduceOp.MAX)
        return value

    def objects(self, value: Any) -> list[Any]:
        """One small picklable value of each worker, in rank order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self.collective():
            dist.all_gather_object(values, value)
        return values

    @property
    def _device(self) -> torch.device:
        return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
