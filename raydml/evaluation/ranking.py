"""Queries and a gallery -> the first K gallery rows of each query, exactly ranked, one tile of scores at a time.

The order is by score descending, then by gallery row ascending. Scores are float64, and every matrix product has the
same shape (QUERY_BLOCK x GALLERY_TILE, padded with zeros), so that a score depends on its two vectors alone: neither
on the other queries nor on the size of the gallery. Equal vectors therefore tie exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from raydml.evaluation.checks import squared_norms

Metric = Literal["cosine", "euclidean", "manhattan"]
Array = np.ndarray[Any, Any]

QUERY_BLOCK = 256  # queries that are scored together; whoever splits queries over workers cuts at its multiples
GALLERY_TILE = 4096  # gallery rows scored at a time: a tile of scores is 8 MiB
DIMENSION_TILE = 1024  # coordinates multiplied at a time: a tile of the gallery is 32 MiB
_KEPT_BYTES = 2**28  # bound on the ranked candidates held at a time, but for a single query


@dataclass(frozen=True)
class Scorer:
    """Scores of queries (nq, d) against a gallery (ng, d): higher is nearer. Vectors are checked when it is made."""

    queries: Array
    gallery: Array
    metric: Metric
    query_scale: Array  # (nq,) factor of each query's scores
    gallery_scale: Array  # (ng,) factor of each gallery row's scores
    gallery_offset: Array  # (ng,) subtracted from each gallery row's scores

    @classmethod
    def of(cls, queries: Array, gallery: Array, metric: Metric) -> Scorer:
        """Check and prepare; DataError for rows that are not finite."""
        query_norms, gallery_norms = squared_norms("queries", queries), squared_norms("gallery", gallery)
        ones, zeros = np.ones(len(gallery)), np.zeros(len(gallery))
        if metric == "cosine":
            return cls(queries, gallery, metric, _inverse_root(query_norms), _inverse_root(gallery_norms), zeros)
        if metric == "euclidean":  # |q - g|^2 = |q|^2 + |g|^2 - 2 q.g, and |q|^2 does not change the order
            return cls(queries, gallery, metric, np.full(len(queries), 2.0), ones, gallery_norms)
        return cls(queries, gallery, metric, np.full(len(queries), -1.0), ones, zeros)

    def tile(self, block: int, start: int) -> Array:
        """Scores of the queries from row `block` against the gallery from row `start`: (QUERY_BLOCK, rows left)."""
        scores = np.zeros((QUERY_BLOCK, GALLERY_TILE))
        for low in range(0, self.gallery.shape[1], DIMENSION_TILE):
            part = slice(low, low + DIMENSION_TILE)
            queries = _padded(self.queries[block : block + QUERY_BLOCK, part], QUERY_BLOCK)
            gallery = _padded(self.gallery[start : start + GALLERY_TILE, part], GALLERY_TILE)
            if self.metric == "manhattan":
                scores += torch.cdist(torch.from_numpy(queries), torch.from_numpy(gallery), p=1).numpy()
            else:
                scores += queries @ gallery.T
        here = slice(start, start + GALLERY_TILE)
        scores *= _padded(self.query_scale[block : block + QUERY_BLOCK], QUERY_BLOCK)[:, None]
        scores = scores[:, : len(self.gallery_scale[here])]
        scores *= self.gallery_scale[here]
        scores -= self.gallery_offset[here]
        return scores


def ranked(scorer: Scorer, block: int, depths: Array, own: Array) -> list[tuple[slice, Array]]:
    """The first gallery rows of the queries from row `block`, in order of rank.

    `depths` (b,) is how many ranks each query needs, `own` (b,) the gallery row that is left out, or -1. Gives pairs
    of a slice of the block and its rows (queries of the slice, deepest of them); queries that need many ranks go in
    smaller slices, so that memory stays bounded. Where own is left out and every gallery row is ranked, it comes last.
    """
    parts = []
    start = 0
    while start < len(depths):
        stop = _affordable(depths, start)
        here = slice(start, stop)
        parts.append((here, _best_rows(scorer, block, here, int(depths[here].max()), own[here])))
        start = stop
    return parts


def _affordable(depths: Array, start: int) -> int:
    """End of the longest slice of queries from `start` whose candidates fit in memory; at least one query."""
    deepest = np.maximum.accumulate(depths[start:])
    fits = np.arange(1, len(deepest) + 1) * (deepest + GALLERY_TILE) * 32 <= _KEPT_BYTES
    return start + max(1, int(fits.sum()))


def _best_rows(scorer: Scorer, block: int, here: slice, depth: int, own: Array) -> Array:
    """Rows of the `depth` best scores for the queries `here` of the block, sorted by (-score, row)."""
    queries = np.arange(len(own))
    scores, rows = np.empty((len(own), 0)), np.empty((len(own), 0), dtype=np.int64)
    for start in range(0, len(scorer.gallery), GALLERY_TILE):
        tile = scorer.tile(block, start)[here]
        stop = start + tile.shape[1]
        inside = (own >= start) & (own < stop)
        tile[queries[inside], own[inside] - start] = -np.inf
        scores = np.concatenate([scores, tile], axis=1)
        rows = np.concatenate([rows, np.broadcast_to(np.arange(start, stop), tile.shape)], axis=1)
        if scores.shape[1] > depth:
            kept = _best_columns(scores, depth)
            scores, rows = np.take_along_axis(scores, kept, axis=1), np.take_along_axis(rows, kept, axis=1)
    return np.take_along_axis(rows, np.argsort(-scores, axis=1, kind="stable"), axis=1)


def _best_columns(scores: Array, depth: int) -> Array:
    """Columns of the `depth` highest scores of each row, ascending; of equal scores the first columns."""
    threshold = np.partition(scores, scores.shape[1] - depth, axis=1)[:, scores.shape[1] - depth, None]
    kept, tied = scores > threshold, scores == threshold
    wanted = depth - kept.sum(axis=1, keepdims=True)
    kept |= tied & (tied.cumsum(axis=1, dtype=np.int32) <= wanted)
    return np.nonzero(kept)[1].reshape(len(scores), depth)


def _padded(rows: Array, length: int) -> Array:
    """`rows` as float64 with zeros after them up to `length` rows."""
    result = np.zeros((length, *rows.shape[1:]))
    result[: len(rows)] = rows
    return result


def _inverse_root(squares: Array) -> Array:
    """1 / sqrt, and 0 of 0: a vector of length zero has cosine 0 with everything."""
    roots = np.sqrt(squares)
    return np.divide(1.0, roots, out=np.zeros_like(roots), where=roots > 0)
