"""Queries and stored vectors -> the k nearest rows of each query, exactly, by (score, row).

Faiss finds candidates in float32, whose rounding depends on the size of the batch. The candidates' scores are then
computed in float64, each from its two vectors alone, and a query is done when float32 rounding cannot have hidden a
better row; otherwise it asks for more candidates. So hits do not depend on batches, threads or BLAS, and equal vectors
tie exactly and come in the order of their rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np

from raydml.search.blas import for_batch
from raydml.search.items import Array, Metric

_SPARE = 16  # candidates beyond k, so that ties and rounding at rank k rarely need a second look
_GROWTH = 4
_ROWS_AT_ONCE = 4096  # rows that are widened to float64 together
_EPSILON = 2.0**-23  # twice the float32 unit roundoff


@dataclass(frozen=True)
class Searched:
    """Stored vectors in the form that Faiss searches."""

    vectors: Array  # float32 (n, d), as given
    faced: Array  # float32 (n, d), what Faiss sees: the vectors, or their unit rows for cosine
    longest: float  # L2 norm that no row of `faced` exceeds
    metric: Metric

    @classmethod
    def of(cls, vectors: Array, metric: Metric) -> Searched:
        """All the vectors of a snapshot."""
        norms = _norms(vectors)
        if metric == "cosine":
            return cls(vectors, _unit_rows(vectors, norms), 1.0 + _EPSILON, metric)
        return cls(vectors, vectors, float(norms.max(initial=0.0)), metric)

    def only(self, rows: Array) -> Searched:
        """Copies of some rows."""
        faced = self.faced[rows]
        vectors = self.vectors[rows] if self.metric == "cosine" else faced
        return Searched(vectors, faced, self.longest, self.metric)


def nearest(queries: Array, searched: Searched, k: int, excluded: Array) -> list[tuple[Array, Array]]:
    """For each query its (rows, scores), nearest first, at most k.

    `queries` is float32 (nq, d), `excluded` (nq,) a row that is not a hit of that query, or -1. Scores are float64:
    cosine, inner product, or Euclidean distance.
    """
    vectors, metric = searched.vectors, searched.metric
    asked = _unit_rows(queries, _norms(queries)) if metric == "cosine" else queries
    slack = _rounding(_norms(asked), searched)
    found: list[tuple[Array, Array] | None] = [None] * len(queries)
    waiting = np.arange(len(queries))
    depth = k + 1 + _SPARE  # one more than k, as a query's own row may be among them
    while len(waiting):
        depth = min(depth, len(vectors))
        lowest, rows = _candidates(asked[waiting], searched, depth)
        for place, query in enumerate(waiting):
            kept = rows[place][rows[place] != excluded[query]]
            kept, closeness = _sorted(kept, _closeness(queries[query], vectors[kept], metric))
            certain = depth == len(vectors) or lowest[place] + slack[query] < closeness[k - 1]
            if certain:
                found[query] = kept[:k], _scores(closeness[:k], metric)
        waiting = np.array([query for query in waiting if found[query] is None], dtype=np.int64)
        depth *= _GROWTH
    return [pair for pair in found if pair is not None]


def _candidates(asked: Array, searched: Searched, depth: int) -> tuple[Array, Array]:
    """Faiss's lowest closeness of each query's candidates (nq,), and their rows (nq, depth)."""
    euclidean = searched.metric == "l2"
    with for_batch(len(asked)):
        values, rows = faiss.knn(
            asked, searched.faced, depth, metric=faiss.METRIC_L2 if euclidean else faiss.METRIC_INNER_PRODUCT
        )
    lowest = values[:, -1].astype(np.float64)
    return (-lowest if euclidean else lowest), rows


def _closeness(query: Array, vectors: Array, metric: Metric) -> Array:
    """Float64 (n,), higher is nearer; for l2 minus the squared distance. Sums run within a row, whatever the others."""
    query, vectors = query.astype(np.float64), vectors.astype(np.float64)
    if metric == "l2":
        return np.asarray(-np.square(vectors - query).sum(axis=1))
    products: Array = (vectors * query).sum(axis=1)
    if metric == "inner_product":
        return products
    cosines: Array = products / np.sqrt(np.square(vectors).sum(axis=1)) / np.sqrt(np.square(query).sum())
    return cosines


def _sorted(rows: Array, closeness: Array) -> tuple[Array, Array]:
    order = np.lexsort((rows, -closeness))
    return rows[order], closeness[order]


def _scores(closeness: Array, metric: Metric) -> Array:
    return np.sqrt(-closeness) if metric == "l2" else closeness


def _rounding(query_norms: Array, searched: Searched) -> Array:
    """Bound (nq,) on what float32 arithmetic can change a closeness by.

    A dot product of d terms is off by at most d u |q| |g| / (1 - d u) (Higham, Accuracy and Stability of Numerical
    Algorithms, section 3.1), u = 2^-24; the squared distance through |q|^2 + |g|^2 - 2 q.g by as much of (|q| + |g|)^2.
    Both are doubled, with room for the few roundings of the unit rows and for products that underflow.
    """
    terms = searched.vectors.shape[1] + 8
    scale = (query_norms + searched.longest) ** 2 if searched.metric == "l2" else query_norms * searched.longest
    return np.asarray(terms * (_EPSILON * scale + np.finfo(np.float32).tiny))


def _norms(vectors: Array) -> Array:
    """L2 norms (n,) in float64, so that no float32 row under- or overflows."""
    norms = np.empty(len(vectors))
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        here = slice(start, start + _ROWS_AT_ONCE)
        norms[here] = np.sqrt(np.square(vectors[here], dtype=np.float64).sum(axis=1))
    return norms


def _unit_rows(vectors: Array, norms: Array) -> Array:
    """Rows (n, d) divided by their norms, float32."""
    result = np.empty_like(vectors)
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        here = slice(start, start + _ROWS_AT_ONCE)
        result[here] = vectors[here] / norms[here, None]
    return result
