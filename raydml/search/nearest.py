"""Queries and stored vectors -> the k nearest rows of each query, exactly, by (score, row).

Faiss finds candidates in float32, whose rounding depends on the size of the batch. The candidates' scores are then
computed in float64, each from its two vectors alone, and a query is done when float32 rounding cannot have hidden a
better row; otherwise it asks for more candidates. So hits do not depend on batches, threads or BLAS, and equal vectors
tie exactly and come in the order of their rows.
"""

from __future__ import annotations

import faiss
import numpy as np

from raydml.search.blas import for_batch
from raydml.search.items import Array, Metric

_SPARE = 16  # candidates beyond k, so that ties and rounding at rank k rarely need a second look
_GROWTH = 4
_EPSILON = 2.0**-23  # twice the float32 unit roundoff


def unit_rows(vectors: Array) -> Array:
    """Rows (n, d) divided by their L2 norm, float32; computed in float64 so that no length under- or overflows."""
    norms = np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=1, keepdims=True))
    return (vectors / norms).astype(np.float32)


def nearest(
    queries: Array, vectors: Array, searched: Array, k: int, metric: Metric, excluded: Array
) -> list[tuple[Array, Array]]:
    """For each query its (rows, scores), nearest first, at most k.

    `queries` (nq, d) and `vectors` (n, d) are float32 as given; `searched` (n, d) is `vectors`, or their unit rows for
    cosine. `excluded` (nq,) is a row that is not a hit of that query, or -1. Scores are float64: cosine, inner product,
    or Euclidean distance.
    """
    asked = unit_rows(queries) if metric == "cosine" else queries
    slack = _rounding(asked, searched, metric)
    found: list[tuple[Array, Array] | None] = [None] * len(queries)
    waiting = np.arange(len(queries))
    depth = k + 1 + _SPARE  # one more than k, as a query's own row may be among them
    while len(waiting):
        depth = min(depth, len(vectors))
        lowest, rows = _candidates(asked[waiting], searched, depth, metric)
        for place, query in enumerate(waiting):
            kept = rows[place][rows[place] != excluded[query]]
            kept, closeness = _sorted(kept, _closeness(queries[query], vectors[kept], metric))
            certain = depth == len(vectors) or lowest[place] + slack[query] < closeness[k - 1]
            if certain:
                found[query] = kept[:k], _scores(closeness[:k], metric)
        waiting = np.array([query for query in waiting if found[query] is None], dtype=np.int64)
        depth *= _GROWTH
    return [pair for pair in found if pair is not None]


def _candidates(asked: Array, searched: Array, depth: int, metric: Metric) -> tuple[Array, Array]:
    """Faiss's lowest closeness of each query's candidates (nq,), and their rows (nq, depth)."""
    kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    with for_batch(len(asked)):
        values, rows = faiss.knn(asked, searched, depth, metric=kind)
    lowest = values[:, -1].astype(np.float64)
    return (-lowest if metric == "l2" else lowest), rows


def _closeness(query: Array, vectors: Array, metric: Metric) -> Array:
    """Float64 (n,), higher is nearer; for l2 minus the squared distance. Sums run within a row, whatever the others."""
    query, vectors = query.astype(np.float64), vectors.astype(np.float64)
    if metric == "l2":
        return -np.square(vectors - query).sum(axis=1)
    products = (vectors * query).sum(axis=1)
    if metric == "inner_product":
        return products
    return products / np.sqrt(np.square(vectors).sum(axis=1)) / np.sqrt(np.square(query).sum())


def _sorted(rows: Array, closeness: Array) -> tuple[Array, Array]:
    order = np.lexsort((rows, -closeness))
    return rows[order], closeness[order]


def _scores(closeness: Array, metric: Metric) -> Array:
    return np.sqrt(-closeness) if metric == "l2" else closeness


def _rounding(asked: Array, searched: Array, metric: Metric) -> Array:
    """Bound (nq,) on what float32 arithmetic can change a closeness by.

    A dot product of d terms is off by at most d u |q| |g| / (1 - d u) (Higham, Accuracy and Stability of Numerical
    Algorithms, section 3.1), u = 2^-24; the squared distance through |q|^2 + |g|^2 - 2 q.g by as much of (|q| + |g|)^2.
    Both are doubled, with room for the few roundings of the unit rows.
    """
    query_norms = np.sqrt(np.square(asked, dtype=np.float64).sum(axis=1))
    longest = np.sqrt(np.square(searched, dtype=np.float64).sum(axis=1).max(initial=0.0))
    scale = (query_norms + longest) ** 2 if metric == "l2" else query_norms * longest
    return np.asarray((asked.shape[1] + 8) * _EPSILON * scale)
