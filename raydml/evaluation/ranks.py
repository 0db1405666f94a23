"""Queries, a gallery and their labels -> the ranks of each query's positives, from one tile of scores at a time.

The order is by exact score descending, then by gallery row ascending. A positive's rank is its place among the
positives plus the number of negatives before it, and such counts add up over tiles. Negatives are sifted by rough
scores; only one that rounding could have put on the wrong side of a positive is scored exactly. So ranks do not depend
on tiles, blocks or the threads of a matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from raydml.evaluation.scores import SPAN, Array, Scorer

BLOCK = 512  # queries that are ranked together
GALLERY_TILE = 2048  # gallery rows scored at a time: 4 MiB of rough scores
_FIRST_TILE = 512  # the first tile is small: what it shows spares most of the work on the others
_PAIRS = 2**20  # positives of a block of queries, but for a block of one query
_WAITING = 2**16  # negatives that wait to be counted, at least


@dataclass(frozen=True)
class Ranked:
    """Positives of some queries, query after query and nearest first, as flat arrays of one length."""

    queries: Array  # place of the query in its block, ascending
    rows: Array  # gallery row
    scores: Array  # exact, float64
    place: Array  # 0, 1, 2, ... among the positives of the query

    @classmethod
    def of(cls, scorer: Scorer, queries: Array, places: Array, rows: Array) -> Ranked:
        """Pairs of a query, `queries[places[i]]`, and its positive `rows[i]`, put in order.

        `places` ascends, and so do `rows` within a query.
        """
        scores = scorer.exact(queries, places, rows)
        order = np.argsort(-scores, kind="stable")
        order = order[np.argsort(places[order].astype(np.int16), kind="stable")]  # a radix sort; BLOCK < 2^15
        starts = np.searchsorted(places, np.arange(len(queries)))
        return cls(places, rows[order], scores[order], np.arange(len(rows)) - starts[places])


@dataclass
class Negatives:
    """Negatives of a block that wait to be counted: place of the query, gallery row and rough score of each."""

    queries: list[Array]
    rows: list[Array]
    scores: list[Array]

    def __len__(self) -> int:
        return sum(map(len, self.rows))

    def take(self) -> tuple[Array, Array, Array]:
        """All of them, which then wait no longer."""
        taken = tuple(np.concatenate(parts) for parts in (self.queries, self.rows, self.scores))
        for parts in (self.queries, self.rows, self.scores):
            parts.clear()
        return taken  # type: ignore[return-value]


def blocks(num_positives: Array) -> Iterator[slice]:
    """Queries in slices of at most BLOCK and about _PAIRS positives, of `num_positives` (nq,), in their order."""
    start = 0
    while start < len(num_positives):
        fits = np.cumsum(num_positives[start : start + BLOCK]) <= _PAIRS
        stop = start + max(1, int(fits.sum()))
        yield slice(start, stop)
        start = stop


def ranks(
    scorer: Scorer, queries: Array, positives: Ranked, query_labels: Array, gallery_labels: Array, limits: Array
) -> Array:
    """Rank of each positive from 1 on, int64 (positives,); one beyond its limit may come out too low, yet beyond it.

    `queries` (b,) are rows of the scorer's queries, each with a positive, `query_labels` their labels. `limits`
    (positives,) is the last rank that matters, and does not rise within a query.
    """
    found: Array = positives.place + 1
    lowest = _lowest(scorer, positives, found, limits, len(queries))
    waiting = Negatives([], [], [])
    space: Array = np.empty(len(queries) * GALLERY_TILE, dtype=scorer.rough_type)
    for start, stop in _tiles(len(gallery_labels)):
        scores = scorer.rough(queries, start, stop, space)
        flat = np.flatnonzero(scores >= lowest[:, None])  # nonzero of the matrix takes ten times as long
        near, column = np.divmod(flat, stop - start)
        other = gallery_labels[start + column] != query_labels[near]
        near, column = near[other], column[other]
        waiting.queries.append(near)
        waiting.rows.append(start + column)
        waiting.scores.append(scores[near, column])
        if len(waiting) <= max(_WAITING, len(found)) and stop < len(gallery_labels):
            continue
        found += _before(scorer, queries, positives, *waiting.take())
        lowest = _lowest(scorer, positives, found, limits, len(queries))
        if np.isinf(lowest).all():
            break
    return found


def _tiles(length: int) -> Iterator[tuple[int, int]]:
    start, width = 0, min(_FIRST_TILE, GALLERY_TILE)
    while start < length:
        yield start, min(start + width, length)
        start, width = start + width, min(2 * width, GALLERY_TILE)


def _lowest(scorer: Scorer, positives: Ranked, found: Array, limits: Array, num_queries: int) -> Array:
    """Rough score below which a negative changes no rank that matters: float32 (b,), infinite where none can."""
    alive = found <= limits
    last = np.bincount(positives.queries[alive], minlength=num_queries) - 1
    starts = np.searchsorted(positives.queries, np.arange(num_queries))
    lowest = np.where(last >= 0, positives.scores[starts + np.maximum(last, 0)] - scorer.slack, np.inf)
    return np.nextafter(lowest.astype(np.float32), np.float32(-np.inf))


def _before(scorer: Scorer, queries: Array, positives: Ranked, near: Array, rows: Array, scores: Array) -> Array:
    """How many of the negatives stand before each positive: int64 (positives,)."""
    keys = near * SPAN - scores  # ascending: query after query, nearest first
    order = np.argsort(keys)
    keys = keys[order]
    wanted = positives.queries * SPAN - positives.scores
    first = np.searchsorted(keys, wanted - scorer.slack)
    last = np.searchsorted(keys, wanted + scorer.slack, "right")
    edges = np.bincount(first, minlength=len(keys) + 1) - np.bincount(last, minlength=len(keys) + 1)
    doubtful = edges.cumsum()[: len(keys)] > 0
    counted = _count(keys[~doubtful], wanted, positives.queries * SPAN - SPAN / 2)
    if doubtful.any():
        here = order[doubtful]
        counted += _exactly_before(positives, near[here], rows[here], scorer.exact(queries, near[here], rows[here]))
    return counted


def _exactly_before(positives: Ranked, near: Array, rows: Array, scores: Array) -> Array:
    """The same from exact scores, with the rule for ties: one integer holds query, place of the score, and row."""
    steps = np.unique(np.concatenate([-positives.scores, -scores]))
    num_rows = int(max(positives.rows.max(), rows.max())) + 1
    assert BLOCK * len(steps) * num_rows < 2**63

    def keys(queries: Array, scores: Array, rows: Array) -> Array:
        return np.asarray((queries * len(steps) + np.searchsorted(steps, -scores)) * num_rows + rows)

    return _count(
        np.sort(keys(near, scores, rows)),
        keys(positives.queries, positives.scores, positives.rows),
        positives.queries * len(steps) * num_rows,
    )


def _count(keys: Array, wanted: Array, start: Array) -> Array:
    """How many of the sorted keys lie from `start` to before `wanted`, for each of them."""
    return np.searchsorted(keys, wanted) - np.searchsorted(keys, start)
