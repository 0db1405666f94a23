"""Labels of a batch in; its fixed tiles out: every two rows meet in one of them.

The rows are sorted by class and cut into pieces, a few for each slice. The score of two rows does not depend on who is
the anchor, so of all pairs of pieces each piece takes those with itself and with the half of the others that follow it,
cyclically: an equal share, computed by whoever owns the slice. A tile has the rows of one slice and the columns of
another, or of several small ones; the first of a piece begins with the piece itself, of which half is left out. Sorting
puts positives beside each other, so that most tiles hold negatives alone and need no masks. Nothing here depends on the
number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

Over = Literal["positives", "negatives", "others"]

ROWS = 256  # of a tile, at most: a tile of float32 fits the second-level cache beside its operands
COLUMNS = 1024


@dataclass(frozen=True)
class Tile:
    """Where a tile of scores lies among the sorted rows.

    `same` (r, c) marks pairs of one class; `apart` (r, c) those that do not count, as rows beside themselves and pairs
    that are there a second time; None: no pair.
    """

    rows: slice
    columns: slice
    same: Tensor | None
    apart: Tensor | None

    @cached_property
    def positive(self) -> Tensor | None:
        """Pairs of two rows of one class, (r, c)."""
        return self.same if self.same is None or self.apart is None else self.same & ~self.apart

    @cached_property
    def outside(self) -> dict[Over, Tensor | None]:
        """The pairs that are not positives, negatives, or either, (r, c)."""
        return {
            "positives": None if self.positive is None else ~self.positive,
            "negatives": self.same if self.same is None or self.apart is None else self.same | self.apart,
            "others": self.apart,
        }


class Layout:
    """The tiles of a batch of B rows in slices of `slice_size`; all that it tells is in the order of classes.

    `one_sided`: every row of a slice meets all rows of the batch, for what is not the same from both sides.
    """

    def __init__(self, labels: Tensor, slice_size: int, *, one_sided: bool = False) -> None:
        self.size, self.slice_size = len(labels), slice_size
        self.num_slices = self.size // slice_size
        self._run = 1 if can_travel(slice_size) else self.num_slices
        self._one_sided = one_sided
        # How far on the last slice is that a slice meets.
        self._reach = self.num_slices - 1 if one_sided else (self.num_slices + 1) // 2
        self.order = labels.argsort(stable=True)  # (B,) the row at each place of the sorted batch
        self.ranks = torch.empty_like(self.order)  # (B,) the place of each row
        self.numbers = torch.arange(self.size, device=labels.device)
        self.ranks[self.order] = self.numbers
        self.labels = labels[self.order]
        self._classes: list[int] = self.labels.tolist()
        _, inverse, class_sizes = torch.unique_consecutive(self.labels, return_inverse=True, return_counts=True)
        self.largest_class = int(class_sizes.max())
        self.places = self.numbers - torch.searchsorted(self.labels, self.labels)  # (B,) within the class, from 0
        self.num_positives = class_sizes[inverse] - 1  # (B,)
        self.num_negatives = self.size - 1 - self.num_positives
        self._pieces_per_slice = -(-slice_size // ROWS)
        self._pieces = [
            slice(start, min(start + ROWS, first + slice_size))
            for first in range(0, self.size, slice_size)
            for start in range(first, first + slice_size, ROWS)
        ]

    def within(self, index: int, rows: slice) -> slice:
        """Rows of a slice, counted from its first."""
        return slice(rows.start - index * self.slice_size, rows.stop - index * self.slice_size)

    def meets(self, index: int, other: int) -> bool:
        """Whether a slice may have tiles whose columns are in another."""
        return (other - index) % self.num_slices <= self._reach

    def runs(self, index: int) -> Iterator[range]:
        """The slices that one meets, itself first, in runs that tiles may cross: of one slice, where they can travel.

        Slices that follow the last one, cyclically, have numbers from V on; no run crosses V.
        """
        first, stop = index, index + self._reach + 1
        while first < stop:
            end = min(first + self._run, stop, self.num_slices if first < self.num_slices else stop)
            yield range(first, end)
            first = end

    def tiles(self, index: int) -> Iterator[Tile]:
        """The tiles that a slice stands for; those of all slices together hold each pair of rows once."""
        for others in self.runs(index):
            yield from self.tiles_between(index, others)

    def tiles_between(self, index: int, others: range) -> Iterator[Tile]:
        """Of the tiles of slice `index` those whose columns lie in a run of slices, numbered as in `runs`."""
        count, each = len(self._pieces), self._pieces_per_slice
        for number in range(index * each, (index + 1) * each):
            rows = self._pieces[number]
            first, last = others.start * each, others.stop * each - 1
            if not self._one_sided:
                first, last = max(number, first), min(number + num_followers(number, count), last)
            if first <= last:
                columns = slice(self._pieces[first % count].start, self._pieces[last % count].stop)
                first_part = ROWS if first == number and not self._one_sided else COLUMNS  # short, as it needs masks
                for part in chunks(columns, first_part, COLUMNS):
                    yield self._tile(rows, part)

    def _tile(self, rows: slice, columns: slice) -> Tile:
        classes = self._classes
        if classes[rows.stop - 1] < classes[columns.start] or classes[columns.stop - 1] < classes[rows.start]:
            return Tile(rows, columns, None, None)
        same = self.labels[rows].unsqueeze(1) == self.labels[columns]
        if columns.start >= rows.stop or columns.stop <= rows.start:
            return Tile(rows, columns, same, None)
        own, other = self.numbers[rows].unsqueeze(1), self.numbers[columns]
        return Tile(rows, columns, same, own == other if self._one_sided else own >= other)


def chunks(rows: slice, first: int, most: int) -> Iterator[slice]:
    """Consecutive rows: at most so many first ones, then at most so many at a time."""
    starts = [rows.start, *range(rows.start + first, rows.stop, most)]
    yield from (slice(start, stop) for start, stop in pairwise([*starts, rows.stop]))


def can_travel(slice_size: int) -> bool:
    """Whether slices are so large that tiles keep to one each, and no worker need hold two that are not its own.

    Tiles of small slices cross them, for tiles of few columns are slow.
    """
    return slice_size > COLUMNS // 2


def num_followers(number: int, count: int) -> int:
    """With how many of the pieces that follow it, cyclically, a piece is paired, so that each two meet once.

    Of an even count two opposite pieces could both claim their pair; the even of the first half and the odd of the
    second half get it.
    """
    half = count // 2
    if count % 2:
        return half
    return half if (number % half) % 2 == number // half else half - 1
