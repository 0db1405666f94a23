"""Backward passes of slices -> the sum of their gradients over all slices, in memory that stays from step to step.

A gradient goes into the sum of its slices as soon as it is known, and its own memory is given up at once: memory that
is fresh from the system costs more than the arithmetic in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from raydml.errors import SpecError
from raydml.membership import Tree
from raydml.parallel.group import Group
from raydml.parallel.reduction import PartialSums, sum_over_workers

Take = Callable[[int, Tensor], None]


@dataclass(frozen=True, eq=False)
class Pass:
    """The way back of one slice: its number, and what must be summed beside the gradients, as it is.

    `run(take)` hands over the gradient of each parameter that the slice reaches, by place and once, for good.
    """

    index: int
    run: Callable[[Take], None]
    rest: Sequence[Tensor]


class Row:
    """Numbers of several tensors in one piece, (numbers,) with some of padding, and views of their shapes."""

    def __init__(self, like: Sequence[Tensor], multiple: int) -> None:
        sizes = [tensor.numel() for tensor in like]
        self._kinds = [tensor.dtype for tensor in like]
        kind = reduce(torch.promote_types, self._kinds)
        self.numbers = torch.zeros(sum(sizes) + -sum(sizes) % multiple, dtype=kind, device=like[0].device)
        pieces = torch.split(self.numbers[: sum(sizes)], sizes)
        self._views = [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]

    def take(self, given: Pass, *, more: bool) -> None:
        """Run the pass; its numbers are added to what is here (more), or take its place."""
        count = len(self._views) - len(given.rest)
        missing = set(range(count))

        def put(place: int, value: Tensor) -> None:
            view = self._views[place]
            view.add_(value) if more else view.copy_(value)
            missing.discard(place)

        given.run(put)
        for place, value in enumerate(given.rest, start=count):
            put(place, value)
        for place in sorted(missing):  # what the slice does not reach has a gradient of 0
            put(place, torch.zeros_like(self._views[place]))

    def tensors(self) -> list[Tensor]:
        """What is here, in the shapes and types of the tensors."""
        return [view.to(kind) for view, kind in zip(self._views, self._kinds, strict=True)]


class SliceSums:
    """Sums over all slices, by the tree (the same bits for any workers) or as the library likes (exact).

    What a step was given is written over in the next one.
    """

    def __init__(self, parameters: Sequence[Tensor], group: Group) -> None:
        self._parameters, self._group = [parameter.detach() for parameter in parameters], group
        self._layout: object = None
        self._kept: list[Row] = []  # of the step before
        self._rows: list[Row] = []  # of this one
        self._free: list[Row] = []  # of this one's, those that were added to others

    def by_the_tree(self, passes: Iterable[Pass]) -> list[Tensor]:
        """Gradients of the parameters and the rest, summed over the V slices, on every worker."""
        self._begin()
        tree = Tree(self._group.num_slices)
        sums: PartialSums[Row] = PartialSums(tree.num_slices, self._merged)
        for given in passes:
            waiting, node = sums.claim(given.index)
            row = self._with(given, waiting)
            if row is None:
                return []
            sums.put(node, row)
        rows = [sums.partial[node] for node in tree.cover(self._group.owned)]
        sum_over_workers([row.numbers for row in rows], self._group)
        return rows[0].tensors()

    def plainly(self, passes: Iterable[Pass]) -> list[Tensor]:
        """The same, the own slices in turn, then the workers by the library's all-reduce."""
        self._begin()
        row: Row | None = None
        for given in passes:
            row = self._with(given, row)
        if row is None:
            return []
        self._group.all_reduce(row.numbers)
        return row.tensors()

    def _begin(self) -> None:
        self._kept, self._rows, self._free = self._rows, [], []

    def _with(self, given: Pass, row: Row | None) -> Row | None:
        """A row with the pass, which is added to the given one; None where there is nothing to sum."""
        like = [*self._parameters, *given.rest]
        layout = (self._group.size, [(tensor.shape, tensor.dtype, tensor.device) for tensor in like])
        if layout != self._layout:
            if self._rows:
                raise SpecError(
                    f"slice {given.index} meets {len(given.rest) // 2} batch norms, or of other sizes than the slices "
                    f"before it: the model's forward must take the same layers for each"
                )
            self._layout, self._kept = layout, []
        if not like:
            return None
        found = row or self._another(like)
        found.take(given, more=row is not None)
        return found

    def _another(self, like: Sequence[Tensor]) -> Row:
        if self._free:
            return self._free.pop()
        self._rows.append(self._kept.pop() if self._kept else Row(like, self._group.size))
        return self._rows[-1]

    def _merged(self, one: Row, other: Row) -> Row:
        one.numbers.add_(other.numbers)
        self._free.append(other)
        return one
