"""The workers that train together: rows gathered in slice order, sums and small values agreed on."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from raydml.membership import share


class Group:
    """One process's place among W workers that share V slices; with W = 1 nothing is communicated.

    `num_slices` is V. The default process group of torch.distributed must span exactly these workers when W > 1.
    """

    def __init__(self, rank: int, size: int, num_slices: int) -> None:
        self.rank = rank
        self.size = size
        self.num_slices = num_slices

    @property
    def owned(self) -> range:
        """The slices of this worker."""
        return self.share(self.rank)

    def share(self, rank: int) -> range:
        """The slices of a worker."""
        return share(rank, self.size, self.num_slices)

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
        dist.all_gather_into_tensor(everything, padded)
        if longest == min(counts):
            return everything
        parts = torch.split(everything, longest)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def all_reduce(self, value: Tensor) -> Tensor:
        """Sum over workers, in place; the order of the sum is the library's."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def first_says(self, value: int, device: torch.device) -> int:
        """A small number of the first worker, known to all."""
        if self.size == 1:
            return value
        told = torch.tensor([value], device=device)
        dist.broadcast(told, src=0)
        return int(told.item())

    def objects(self, value: Any) -> list[Any]:
        """One small picklable value of each worker, in rank order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values
