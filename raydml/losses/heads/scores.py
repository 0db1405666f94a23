"""A batch against the class vectors of one shard, a chunk of classes at a time, and slopes of the scores back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from raydml.losses.heads.table import Rows

KEPT = 1 << 24  # numbers of all scores that a step keeps for its second pass, 64 MiB in float32
ROWS = 1024  # of the batch, and columns of class vectors, in a tile: 512 KB of scores for 128 rows in float32
COLUMNS = 1024
SMALLEST = 1e-12  # norms below count as this, as in functional.normalize


@dataclass(frozen=True)
class Chunk:
    """Some classes of a shard: `classes` counts those that the step compares with, `vectors` (n x K, D) are ready."""

    classes: slice
    rows: slice  # of the shard's vectors, K for each class
    vectors: Tensor


class Kept:
    """Scores of a step's first pass for its second: as many as fit. The others are computed again, to the same bits."""

    def __init__(self) -> None:
        self._left = KEPT
        self._held: dict[tuple[int, int, int], tuple[Tensor, Tensor | None]] = {}

    def put(self, key: tuple[int, int, int], scores: Tensor, best: Tensor | None) -> None:
        """Keep a copy of a tile, named by its shard, first class and first row, while there is room."""
        numbers = scores.numel() * (1 if best is None else 3)  # places are twice as wide
        if numbers <= self._left:
            self._left -= numbers
            self._held[key] = scores.clone(), best

    def take(self, key: tuple[int, int, int]) -> tuple[Tensor, Tensor | None] | None:
        """A tile that was kept, which is then the caller's."""
        return self._held.pop(key, None)


class ShardScores:
    """Scores of a batch, prepared (B, D): of the K vectors of a class the best one counts.

    `rows` and `places` (b,) say which rows of the batch have their own class here, and its place among the classes.
    """

    def __init__(self, held: Rows, batch: Tensor, rows: Tensor, places: Tensor, *, normalize: bool) -> None:
        self.held, self.batch, self.rows = held, batch, rows
        dimension = batch.shape[1]
        self.raw = held.vectors.reshape(-1, dimension)  # (m x K, D)
        self.copies = held.vectors.shape[1] // dimension
        self.num_classes = len(held.vectors)
        self.places = places if held.places is None else torch.searchsorted(held.places, places)
        self._normalize = normalize
        self._inverse = self._norms().reciprocal() if normalize else None
        self.gradient = torch.empty_like(self.raw)  # dL/d(vectors), chunk by chunk

    def _norms(self) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(self.raw, dim=1, keepdim=True)  # (m x K, 1)
        return norms.clamp_min(SMALLEST)

    def _ready(self, index: slice | Tensor) -> Tensor:
        return self.raw[index] if self._inverse is None else self.raw[index] * self._inverse[index]

    def chunks(self) -> Iterator[Chunk]:
        """All classes, a chunk at a time."""
        step = max(1, COLUMNS // self.copies)
        for start in range(0, self.num_classes, step):
            classes = slice(start, min(start + step, self.num_classes))
            rows = slice(classes.start * self.copies, classes.stop * self.copies)
            yield Chunk(classes, rows, self._ready(rows))

    def tiles(self) -> Iterator[slice]:
        """Rows of the batch, a tile at a time."""
        yield from (slice(start, min(start + ROWS, len(self.batch))) for start in range(0, len(self.batch), ROWS))

    def tile(self, rows: Tensor, chunk: Chunk) -> tuple[Tensor, Tensor | None]:
        """Scores (r, n) of rows (r, D), a fresh tensor; and with K > 1 which vector of each class is the best."""
        scores = rows @ chunk.vectors.T
        if self.copies == 1:
            return scores, None
        best = scores.view(len(rows), -1, self.copies).max(2)
        return best.values, best.indices

    def spread(self, slopes: Tensor, best: Tensor | None) -> Tensor:
        """Slopes of classes (r, n) -> of vectors (r, n x K)."""
        if best is None:
            return slopes
        wide = slopes.new_zeros(*slopes.shape, self.copies)
        return wide.scatter_(2, best.unsqueeze(2), slopes.unsqueeze(2)).flatten(1)

    def own(self, tile: slice, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Where in a tile rows meet their own class."""
        here = (self.rows >= tile.start) & (self.rows < tile.stop)
        here &= (self.places >= chunk.classes.start) & (self.places < chunk.classes.stop)
        return self.rows[here] - tile.start, self.places[here] - chunk.classes.start

    def targets(self) -> tuple[Tensor, Tensor]:
        """Of the rows that have their class here, its score (b,), and the place of the vector that gives it."""
        places = (self.places * self.copies).unsqueeze(1) + torch.arange(self.copies, device=self.places.device)
        vectors = self._ready(places.flatten()).view(*places.shape, self.batch.shape[1])  # (b, K, D)
        scores = (self.batch[self.rows].unsqueeze(1) * vectors).sum(2)  # (b, K)
        if self.copies == 1:
            return scores.squeeze(1), places.squeeze(1)
        best = scores.max(1)
        return best.values, places.gather(1, best.indices.unsqueeze(1)).squeeze(1)

    def pull_targets(self, slopes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Slopes of those scores (b,) -> dL/d(batch) of those rows (b, D); which vectors, and dL/d(vector ready)."""
        _, places = self.targets()
        forces = slopes.unsqueeze(1)
        return forces * self._ready(places), places, forces * self.batch[self.rows]

    def pull_ready(self, chunk: Chunk) -> None:
        """`gradient` of a chunk's vectors as they were ready, in place -> of the vectors as they are."""
        if self._inverse is not None:
            gradient = self.gradient[chunk.rows]
            along = (gradient * chunk.vectors).sum(1, keepdim=True)
            # A vector of zeros has no direction: what lies below the smallest norm is a constant.
            along.masked_fill_(self._inverse[chunk.rows] > 0.5 / SMALLEST, 0)
            gradient.addcmul_(along, chunk.vectors, value=-1).mul_(self._inverse[chunk.rows])
