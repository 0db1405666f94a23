"""Gallery labels and some queries -> each query's positives, nearest first.

The order is by exact score descending, then by gallery row ascending. Scores come from products in float64; only those
that lie so near to one another that rounding could have exchanged them are computed exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raydml.evaluation.scores import SPAN, Array, Scorer

_TOGETHER = 64  # queries that are scored with all positives of theirs
_ROWS_AT_ONCE = 2048  # positives of these


@dataclass(frozen=True)
class Classes:
    """Gallery rows by label: `rows` of ascending `labels`, ascending within a label."""

    labels: Array
    rows: Array

    @classmethod
    def of(cls, labels: Array) -> Classes:
        """From the labels of the gallery (ng,)."""
        rows = np.argsort(labels, kind="stable")
        return cls(labels[rows], rows)

    def sizes(self, labels: Array) -> Array:
        """Gallery rows with each of these labels: int64 (n,)."""
        return np.searchsorted(self.labels, labels, "right") - np.searchsorted(self.labels, labels)

    def members(self, labels: Array) -> tuple[Array, Array]:
        """Pairs (place in `labels`, gallery row) of one label, place after place, rows ascending."""
        sizes = self.sizes(labels)
        places = np.repeat(np.arange(len(labels)), sizes)
        within = np.arange(len(places)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return places, self.rows[np.repeat(np.searchsorted(self.labels, labels), sizes) + within]


@dataclass(frozen=True)
class Positives:
    """Positives of some queries, query after query and nearest first, as flat arrays of one length."""

    queries: Array  # place of the query among those asked for, ascending
    rows: Array  # gallery row
    scores: Array  # off by float64's error at most
    starts: Array  # (b,) where each query's begin

    @classmethod
    def of(cls, scorer: Scorer, classes: Classes, queries: Array, labels: Array, own: Array) -> Positives:
        """Positives of the scorer's `queries` (b,), whose `labels` ascend, without the gallery rows `own` (b,).

        Every query must have a positive.
        """
        places, rows, scores = _scored(scorer, classes, queries, labels)
        kept = rows != own[places]
        places, rows, scores = places[kept], rows[kept], scores[kept]
        order = np.argsort(places * SPAN - scores)
        rows, scores = rows[order], scores[order]
        _settle(scorer, queries, places, rows, scores)
        return cls(places, rows, scores, np.searchsorted(places, np.arange(len(queries))))

    @property
    def place(self) -> Array:
        """0, 1, 2, ... among the positives of the query."""
        return np.asarray(np.arange(len(self.rows)) - self.starts[self.queries])


def _scored(scorer: Scorer, classes: Classes, queries: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Pairs (place in `queries`, gallery row) of one label with their scores, from a few products."""
    present, which = np.unique(labels, return_inverse=True)
    owners, columns = classes.members(present)
    starts = np.searchsorted(owners, np.arange(len(present) + 1))  # of each class in `columns`
    ends = np.cumsum(np.diff(starts)[which])  # of each query's pairs
    places = np.repeat(np.arange(len(queries)), np.diff(ends, prepend=0))
    column = np.arange(len(places)) + (starts[which + 1] - ends)[places]
    scores = np.empty(len(places))
    for start in range(0, len(queries), _TOGETHER):
        here = slice(start, min(start + _TOGETHER, len(queries)))
        first, last = starts[which[here.start]], starts[which[here.stop - 1] + 1]
        products = _products(scorer, queries[here], columns[first:last])
        pairs = slice(ends[start - 1] if start else 0, ends[here.stop - 1])
        scores[pairs] = products[places[pairs] - start, column[pairs] - first]
    rows = columns[column]
    return places, rows, scorer.scores(scores, rows)


def _products(scorer: Scorer, queries: Array, rows: Array) -> Array:
    """Float64 (queries, rows), a few rows at a time: a class may be large."""
    asked = scorer.asked(queries, np.empty((len(queries), scorer.gallery.shape[1])))
    result = np.empty((len(queries), len(rows)))
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[start : start + _ROWS_AT_ONCE]
        given = scorer.given(part, np.empty((len(part), asked.shape[1])))
        scorer.products(asked, given, result[:, start : start + len(part)])
    return result


def _settle(scorer: Scorer, queries: Array, places: Array, rows: Array, scores: Array) -> None:
    """Put runs of scores that rounding could have exchanged into their exact order, in place."""
    near = np.diff(places * SPAN - scores) <= 2 * scorer.error(np.float64)
    if not near.any():
        return
    runs = np.concatenate([[0], np.cumsum(~near)])
    here = np.flatnonzero(np.append(near, False) | np.append(False, near))
    exact = scorer.exact(queries[places[here]], rows[here])
    order = np.lexsort((rows[here], -exact, runs[here]))
    rows[here], scores[here] = rows[here[order]], exact[order]
