"""Gradients of rows, a part from each slice that meets them, in; sums over the fixed tree out, where rows belong."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from raydml.losses.tiled.exchange import Meeting, SortedRows, columns_of
from raydml.losses.tiled.layout import Layout, Tile
from raydml.membership import Tree
from raydml.parallel import Group, TreeAccumulator

Pulled = Callable[[Meeting], Iterable[tuple[Tile, Tensor, Tensor]]]  # tiles, gradients of rows and of columns


def summed_gradients(rows: SortedRows, layout: Layout, group: Group, pulled: Pulled) -> Tensor:
    """The gradients of the own rows, in the order of classes, from those that each tile gives to both of its sides."""
    size = layout.slice_size
    sums = RowSums(layout, group)
    own = {index: torch.zeros_like(part) for index, part in zip(group.owned, torch.split(rows.own, size), strict=True)}
    for meetings, whole in rows.meetings():
        for meeting in meetings:
            of_others = torch.zeros_like(meeting.units)
            for tile, of_rows, of_columns in pulled(meeting):
                own[meeting.index][layout.within(meeting.index, tile.rows)] += of_rows
                of_others[columns_of(meeting, tile, layout)] += of_columns
            for other, part in zip(meeting.others, torch.split(of_others, size), strict=True):
                slot = other % layout.num_slices
                if slot == meeting.index:
                    own[slot] += part
                else:
                    sums.add(meeting.index, slot, part)
        for distance in whole:
            sums.send(distance, rows.own)
    for index, total in own.items():
        sums.add(index, index, total)
    return sums.totals()


class RowSums:
    """Sums of a worker: those of the own rows stay, those of another worker's are sent to it once they are whole.

    Slices that do not meet add nothing. Of each row O(log V) partial sums are held.
    """

    def __init__(self, layout: Layout, group: Group) -> None:
        self._size, self._group, self._meets = layout.slice_size, group, layout.meets
        self._tree = Tree(group.num_slices)
        self._own = {rows: self._opened(rows) for rows in group.owned}
        self._away: dict[int, TreeAccumulator] = {}
        others = [rank for rank in range(group.size) if rank != group.rank]
        for rows, sums in self._own.items():
            for node in (node for rank in others for node in self._tree.cover(group.share(rank))):
                if not self._adds(node, rows):
                    sums.put(node, [])

    def add(self, index: int, rows: int, gradient: Tensor) -> None:
        """All that an own slice gives to the rows of a slice, (S, D)."""
        sums = self._own if rows in self._own else self._away
        if rows not in sums:
            sums[rows] = self._opened(rows)
        sums[rows].add(index, [gradient])

    def send(self, distance: int, like: Tensor) -> None:
        """Hand over what was added for the worker so far on, and take what the one as far back has for this one."""
        group = self._group
        there, back = (group.share((group.rank + step) % group.size) for step in (distance, -distance))
        outgoing = [part for rows in there for node in self._tree.cover(group.owned) for part in self._held(rows, node)]
        parts = torch.cat(outgoing) if outgoing else like.new_empty(0, like.shape[1])
        del outgoing
        for rows in there:
            self._away.pop(rows, None)
        expected = [(rows, node) for rows in group.owned for node in self._tree.cover(back) if self._adds(node, rows)]
        received = group.shift(parts, distance, len(expected) * self._size)
        for (rows, node), part in zip(expected, torch.split(received, self._size), strict=False):
            self._own[rows].put(node, [part])

    def totals(self) -> Tensor:
        """(own rows, D), once everybody has sent."""
        return torch.cat([sums.partial[self._tree.root][0] for sums in self._own.values()])

    def _opened(self, rows: int) -> TreeAccumulator:
        sums = TreeAccumulator(self._group.num_slices)
        for index in self._group.owned:
            if not self._meets(index, rows):
                sums.add(index, [])
        return sums

    def _adds(self, node: tuple[int, int], rows: int) -> bool:
        return any(self._meets(index, rows) for index in range(*node))

    def _held(self, rows: int, node: tuple[int, int]) -> list[Tensor]:
        return self._away[rows].partial[node] if rows in self._away else []
