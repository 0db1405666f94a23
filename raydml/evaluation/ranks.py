"""Blocks of queries and a gallery -> the ranks of each query's positives, from one tile of scores at a time.

The order is by exact score descending, then by gallery row ascending. A positive's rank is its place among the
positives plus the number of negatives before it, and such counts add up over tiles. Negatives are sifted by rough
scores; only one that rounding could have put on the wrong side of a positive is scored exactly. So ranks do not depend
on tiles, blocks or the threads of a matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raydml.evaluation.positives import Classes, Positives
from raydml.evaluation.scores import SPAN, Array, Scorer
from raydml.evaluation.tiles import Tiles

BLOCK = 768  # queries that are ranked together
MOST_PAIRS = 2**20  # positives of a block of queries, but for a block of one query
_SCALED = 4  # blocks whose gallery rows are held scaled: 1.5 MiB of 128 coordinates
_WAITING = 2**12  # negatives that wait to be counted, at least


@dataclass(frozen=True)
class Task:
    """What is ranked: labels (nq,) and (ng,), the gallery row that each query is, or -1, and the deepest rank asked."""

    scorer: Scorer
    classes: Classes
    query_labels: Array
    gallery_labels: Array
    own: Array
    depth: int


@dataclass
class Block:
    """Some queries and what is known of the ranks of their positives."""

    task: Task
    queries: Array  # (b,) rows of the scorer's queries
    positives: Positives
    total: Array  # (b,) number of positives, and the last rank that matters, but for the first positive's
    ranks: Array  # of each positive, from 1 on; one that does not matter may be too low, yet does not matter
    lowest: Array  # (b,) shifted score below which a gallery row changes no rank that matters, infinite where none can
    _waiting: list[tuple[Array, Array, Array]] = field(default_factory=list)
    _held: int = 0

    @classmethod
    def of(cls, task: Task, queries: Array, kind: Any) -> Block:
        """Queries whose labels ascend, each with a positive; tiles will have scores of type `kind`."""
        positives = Positives.of(task.scorer, task.classes, queries, task.query_labels[queries], task.own[queries])
        total, lowest = np.bincount(positives.queries), np.empty(len(queries), dtype=kind)
        block = cls(task, queries, positives, total, positives.place + 1, lowest)
        block._raise()
        return block

    def sift(self, near: Array, rows: Array, scores: Array) -> None:
        """Keep the negatives among these that matter: place of the query, gallery row and shifted score."""
        other = self.task.gallery_labels[rows] != self.task.query_labels[self.queries][near]
        kept = other & (scores >= self.lowest[near])
        self._waiting.append((near[kept], rows[kept], scores[kept]))
        self._held += len(self._waiting[-1][0])
        if self._held > max(_WAITING, len(self.ranks)):
            self.count()

    def count(self) -> None:
        """Count the negatives that were kept."""
        if not self._held:
            return
        near, rows, scores = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting, self._held = [], 0
        self.ranks += self._before(near, rows, self.task.scorer.unshifted(scores, self.queries[near]))
        self._raise()

    @property
    def _slack(self) -> float:
        """What a rough score and one of a positive can be wrong by together."""
        return self.task.scorer.error(self.lowest.dtype.type) + self.task.scorer.error(np.float64)

    def _raise(self) -> None:
        """Raise `lowest` to what the ranks so far allow."""
        starts, kind = self.positives.starts, self.lowest.dtype.type
        alive = np.add.reduceat(self.ranks <= self.total[self.positives.queries], starts, dtype=np.int64)
        alive = np.maximum(alive, self.ranks[starts] <= self.task.depth)
        last = self.positives.scores[starts + np.maximum(alive, 1) - 1] - self._slack
        lowest = np.where(alive > 0, self.task.scorer.shifted(last, self.queries), np.inf)
        self.lowest = np.nextafter(lowest.astype(kind), kind(-np.inf))

    def _before(self, near: Array, rows: Array, scores: Array) -> Array:
        """How many of these negatives stand before each positive: int64 (positives,)."""
        keys = near * SPAN - scores  # ascending: query after query, nearest first
        ordered = np.sort(keys)
        wanted = self.positives.queries * SPAN - self.positives.scores
        first = np.searchsorted(ordered, wanted - self._slack)
        last = np.searchsorted(ordered, wanted + self._slack, "right")
        begin = np.searchsorted(ordered, np.arange(len(self.queries)) * SPAN - SPAN / 2)
        counted = np.asarray(first - begin[self.positives.queries])
        unsure = np.flatnonzero(first < last)
        if len(unsure):
            edges = np.bincount(first, minlength=len(keys) + 1) - np.bincount(last, minlength=len(keys) + 1)
            doubtful = edges.cumsum()[:-1] > 0
            here = np.flatnonzero(np.isin(keys, ordered[doubtful]))
            counted[unsure] -= np.concatenate([[0], np.cumsum(doubtful)])[first[unsure]]
            counted[unsure] += self._exactly_before(unsure, near[here], rows[here])
        return counted

    def _exactly_before(self, places: Array, near: Array, rows: Array) -> Array:
        """How many of these negatives, of this query or one before, stand before each positive at `places`."""
        queries = np.concatenate([near, self.positives.queries[places]])
        rows = np.concatenate([rows, self.positives.rows[places]])
        order = np.lexsort((rows, -self.task.scorer.exact(self.queries[queries], rows), queries))
        counted = np.empty(len(rows), dtype=np.int64)
        counted[order] = np.cumsum(order < len(near))
        return counted[len(near) :]


def panels(num_positives: Array, size: int) -> Iterator[list[slice]]:
    """Queries in blocks, slices of at most BLOCK and about MOST_PAIRS positives, and as many together as hold `size`.

    `num_positives` (nq,) are the queries', in their order. A panel has at least one block.
    """
    panel: list[slice] = []
    held = start = 0
    while start < len(num_positives):
        sums = np.cumsum(num_positives[start : start + BLOCK])
        stop = start + max(1, int((sums <= MOST_PAIRS).sum()))
        pairs = int(sums[stop - start - 1])
        if panel and held + pairs > size:
            yield panel
            panel, held = [], 0
        panel.append(slice(start, stop))
        start, held = stop, held + pairs
    if panel:
        yield panel


def rank(task: Task, blocks: list[Block], shared: bool) -> None:
    """Find the ranks of the blocks' positives.

    `shared`: every query has the numbers of its own gallery row, and no two have the same row. Then the scores of two
    blocks serve both, and the other gallery rows come after.
    """
    tiles, rest = Tiles(task.scorer, blocks[0].lowest.dtype), np.arange(len(task.gallery_labels))
    if shared:
        rest = np.delete(rest, np.concatenate([task.own[block.queries] for block in blocks]))
        for first in range(0, len(blocks), _SCALED):
            _meet(task, tiles, blocks, slice(first, first + _SCALED))
    for block in blocks:
        if len(rest):
            tiles.ask(block.queries)
        for rows in tiles.parts(rest):
            near, column, scores = tiles.pairs(rows, tiles.given(rows), block.lowest)
            block.sift(near, rows[column], scores)
        block.count()


def _meet(task: Task, tiles: Tiles, blocks: list[Block], here: slice) -> None:
    """Score some blocks, whose gallery rows are scaled once, with themselves and with all blocks before them."""
    others = [(other, task.own[other.queries]) for other in blocks[here]]
    given = [tiles.given(rows, slot) for slot, (_, rows) in enumerate(others)]
    for number, block in enumerate(blocks[: here.stop]):
        tiles.ask(block.queries)
        for slot in range(max(0, number - here.start), len(others)):
            other, rows = others[slot]
            near, column, scores = tiles.pairs(
                rows, given[slot], block.lowest, np.inf if other is block else other.lowest
            )
            block.sift(near, rows[column], scores)
            if other is not block:
                other.sift(column, task.own[block.queries[near]], scores)
