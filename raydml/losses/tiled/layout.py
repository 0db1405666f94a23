"""Labels of a batch in; its fixed tiles out: rows in slice order, columns sorted by class.

Sorting the columns by the class's first row puts the positives of a row tile side by side, so that most tiles hold
negatives alone and need no masks. Nothing here depends on the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 256  # of a tile, at most: a tile of float32 fits the second-level cache beside its operands
COLUMNS = 1024


@dataclass(frozen=True)
class Tile:
    """Where a tile of scores lies: `rows` among all rows, `columns` among the sorted ones.

    `positive` (r, c) marks other rows of the same class, `own` (r, c) the rows themselves; None: the tile has neither.
    """

    rows: slice
    columns: slice
    positive: Tensor | None
    own: Tensor | None


class Layout:
    """The tiles of a batch of B rows in slices of `slice_size`."""

    def __init__(self, labels: Tensor, slice_size: int) -> None:
        self.labels = labels
        self.slice_size = slice_size
        self.size = len(labels)
        _, inverse = torch.unique(labels, return_inverse=True)
        first = torch.full((int(inverse.max()) + 1,), self.size, device=labels.device)
        rows = torch.arange(self.size, device=labels.device)
        first = first.scatter_reduce(0, inverse, rows, "amin")  # (classes,) first row of each class
        self._class = first[inverse]  # (B,) a class is named by its first row
        self.order = self._class.argsort(stable=True)  # (B,) rows in the order of columns
        self._sorted = self._class[self.order]
        self.class_sizes = inverse.bincount()
        # Place of each column within its class: 0 for the first row, in the order of rows.
        starts = torch.searchsorted(self._sorted, self._sorted)
        self.places = rows - starts  # (B,) of columns
        self.num_positives = (self.class_sizes[inverse] - 1).to(torch.int64)  # (B,) of rows
        self.num_negatives = self.size - 1 - self.num_positives

    def row_tiles(self, owned: range) -> Iterator[slice]:
        """Row tiles of these slices, in order; none crosses a slice."""
        for index in owned:
            for start in range(index * self.slice_size, (index + 1) * self.slice_size, ROWS):
                yield slice(start, min(start + ROWS, (index + 1) * self.slice_size))

    def tiles(self, rows: slice) -> Iterator[Tile]:
        """All tiles beside these rows, columns ascending."""
        mine = self._class[rows]
        lowest, highest = int(mine.min()), int(mine.max())
        for start in range(0, self.size, COLUMNS):
            columns = slice(start, min(start + COLUMNS, self.size))
            theirs = self._sorted[columns]
            if int(theirs[-1]) < lowest or int(theirs[0]) > highest:
                yield Tile(rows, columns, None, None)
                continue
            numbers = torch.arange(rows.start, rows.stop, device=mine.device)
            own = numbers.unsqueeze(1) == self.order[columns]
            yield Tile(rows, columns, (mine.unsqueeze(1) == theirs) & ~own, own)
