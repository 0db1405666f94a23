"""Where the rows of a batch are while its tiles are computed: gathered on every worker, or travelling around a ring.

In the order of classes slice j belongs to the worker that owns slice j of the batch. Every worker needs its own rows
all the time and those of another only while their tiles are computed: so travelling a worker takes the rows of the next
worker, then those of the one after it, until every two rows have met; it holds its share of the batch, and that of one
other. Each slice meets the others in cyclic order, itself first, either way: so both give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from raydml.losses.tiled.layout import Layout, Tile, can_travel
from raydml.losses.tiled.scores import Score
from raydml.parallel import Group


@dataclass(frozen=True)
class Meeting:
    """An own slice and a run of others, numbered as in Layout.runs, with their units (run x S, D)."""

    index: int
    others: range
    units: Tensor


def columns_of(meeting: Meeting, tile: Tile, layout: Layout) -> slice:
    """Where a tile's columns are among the rows that an own slice meets."""
    return layout.within(meeting.others.start % layout.num_slices, tile.columns)


class SortedRows(Protocol):
    """The rows of a batch as the score takes them, in the order of classes."""

    own: Tensor  # (own rows, D)

    def meetings(self) -> Iterator[tuple[Iterable[Meeting], list[int]]]:
        """Meetings in order, and how many places on the workers are whose rows have now met all own slices."""
        ...


class Gathered:
    """Every worker holds all rows, (B, D)."""

    def __init__(self, units: Tensor, layout: Layout, group: Group) -> None:
        self._units, self._layout, self._group = units, layout, group
        self.own = units[rows_of(layout, group.owned)]

    def meetings(self) -> Iterator[tuple[Iterable[Meeting], list[int]]]:
        """See SortedRows."""
        yield self._all(), list(range(1, turns(self._layout, self._group) + 1))

    def _all(self) -> Iterator[Meeting]:
        count = self._layout.num_slices
        for index in self._group.owned:
            for others in self._layout.runs(index):
                there = range(others.start % count, (others.stop - 1) % count + 1)
                yield Meeting(index, others, self._units[rows_of(self._layout, there)])


class Travelling:
    """Every worker holds its own rows, and hands those of others on; runs are of one slice."""

    def __init__(self, own: Tensor, layout: Layout, group: Group) -> None:
        assert can_travel(layout.slice_size), f"slices of {layout.slice_size} rows are too small to travel"
        self.own = own
        self._layout, self._group = layout, group

    def meetings(self) -> Iterator[tuple[Iterable[Meeting], list[int]]]:
        """See SortedRows."""
        layout, group = self._layout, self._group
        here = self.own
        yield self._with(here, 0), []
        for distance in range(1, turns(layout, group) + 1):
            coming = group.share((group.rank + distance) % group.size)
            here = group.shift(here, -1, len(coming) * layout.slice_size)
            yield self._with(here, distance), [distance]
        yield self._with(self.own, group.size), []  # where the circle ends among the own slices

    def _with(self, units: Tensor, distance: int) -> Iterator[Meeting]:
        """Meetings with the slices of the worker so far on, once around where that is W."""
        layout, group = self._layout, self._group
        there = group.share((group.rank + distance) % group.size)
        parts = dict(zip(there, torch.split(units, layout.slice_size), strict=True))
        for index in group.owned:
            for (other,) in layout.runs(index):
                slot = other % layout.num_slices
                around = other >= layout.num_slices
                if slot in parts and (slot not in group.owned or around == (distance == group.size)):
                    yield Meeting(index, range(other, other + 1), parts[slot])


class Order:
    """Own rows in the order of the batch <-> in that of classes, where other workers may own them."""

    def __init__(self, layout: Layout, group: Group) -> None:
        size = layout.slice_size
        owners = torch.empty(group.num_slices, dtype=torch.long)
        for rank in range(group.size):
            owners[group.share(rank).start : group.share(rank).stop] = rank
        owners = owners.to(layout.order.device)
        own = rows_of(layout, group.owned)
        self._group = group
        self._leaving = layout.ranks[own].argsort()  # own rows, by their place among the sorted
        self._given = torch.bincount(owners[layout.ranks[own] // size], minlength=group.size).tolist()
        sources = owners[layout.order[own] // size]  # of each own sorted row
        self._coming = sources.argsort(stable=True)
        self._taken = torch.bincount(sources, minlength=group.size).tolist()

    def sort(self, rows: Tensor) -> Tensor:
        """Own rows of the batch (own rows, ...) -> the rows at the own places of the sorted batch."""
        return self._move(rows, self._leaving, self._given, self._taken, self._coming)

    def back(self, rows: Tensor) -> Tensor:
        """The reverse."""
        return self._move(rows, self._coming, self._taken, self._given, self._leaving)

    def _move(self, rows: Tensor, out: Tensor, given: list[int], taken: list[int], places: Tensor) -> Tensor:
        received = self._group.exchange(rows[out], given, taken)
        moved = torch.empty_like(received)
        moved[places] = received
        return moved


def sorted_rows(score: Score, layout: Layout, embeddings: Tensor, group: Group, order: Order) -> SortedRows:
    """Of a batch whose rows are all here, (B, D), or of which each worker has its own, (own rows, D)."""
    units = torch.cat([score.prepare(rows) for rows in torch.split(embeddings, layout.slice_size)])
    if len(units) == layout.size:
        return Gathered(units[layout.order], layout, group)
    return Travelling(order.sort(units), layout, group)


def own_rows(embeddings: Tensor, own: slice, size: int) -> Tensor:
    """The own rows, of all rows of a batch of `size` or of the own ones alone."""
    return embeddings[own] if len(embeddings) == size else embeddings


def rows_of(layout: Layout, slices: range) -> slice:
    """The rows of consecutive slices."""
    return slice(slices.start * layout.slice_size, slices.stop * layout.slice_size)


def turns(layout: Layout, group: Group) -> int:
    """How many places on the farthest worker is whose rows a worker must meet."""
    pairs = ((rank, other) for rank in range(group.size) for other in range(group.size))
    return max(
        (other - rank) % group.size
        for rank, other in pairs
        if any(layout.meets(index, there) for index in group.share(rank) for there in group.share(other))
    )
