"""Queries and stored vectors -> the k nearest rows of each query, exactly, by (closeness, row).

Faiss finds candidates in float32, whose rounding depends on the size of the batch. The candidates' closeness is then
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
_NUMBERS_AT_ONCE = 1 << 17  # candidates x dimension that are widened together
_EPSILON = 2.0**-23  # twice the float32 unit roundoff
_UNIT = 4 * _EPSILON  # rows whose norm is nearer to 1 than this count as unit rows


@dataclass(frozen=True)
class Searched:
    """Stored vectors in the form that Faiss searches."""

    vectors: Array  # float32 (n, d), as given
    faced: Array  # float32 (n, d), what Faiss sees: the vectors, or their unit rows for cosine
    longest: float  # L2 norm that no row of `faced` exceeds
    metric: Metric

    @classmethod
    def of(cls, vectors: Array, metric: Metric) -> Searched:
        """All of some vectors; `faced` is `vectors` itself where it can be."""
        norms = _norms(vectors)
        if metric == "cosine" and np.abs(norms - 1).max(initial=0.0) > _UNIT:
            return cls(vectors, _unit_rows(vectors, norms), 1.0 + _UNIT, metric)
        return cls(vectors, vectors, float(norms.max(initial=0.0)), metric)

    def only(self, rows: Array) -> Searched:
        """Copies of some rows."""
        faced = self.faced[rows]
        vectors = faced if self.faced is self.vectors else self.vectors[rows]
        return Searched(vectors, faced, self.longest, self.metric)


def nearest(queries: Array, searched: Searched, k: int, usable: Array | None = None) -> tuple[Array, Array]:
    """Closeness (nq, k) in float64, highest first, and rows (nq, k); -inf and -1 where there are no more.

    `queries` is float32 (nq, d), `usable` (n,) bool says which rows may be hits. Closeness is the cosine, the inner
    product, or minus the squared Euclidean distance.
    """
    total = len(searched.vectors)
    hits = total if usable is None else int(np.count_nonzero(usable))
    best = np.full((len(queries), k), -np.inf), np.full((len(queries), k), -1)
    if hits == 0:
        return best
    asked = faced_queries(queries, searched.metric)
    slack = _rounding(_norms(asked), searched)
    waiting = np.arange(len(queries))
    depth = int((k + _SPARE) * total / hits) + 1
    while len(waiting):
        depth = min(depth, total)
        lowest, rows = _candidates(asked[waiting], searched, depth)
        if usable is not None:
            rows = np.where(usable[rows], rows, -1)
        closeness, rows = rescored(queries[waiting], rows, searched, min(k, depth))
        certain = (lowest + slack[waiting] < closeness[:, -1]) if depth < total else np.full(len(waiting), True)
        for target, source in zip(best, (closeness, rows), strict=True):
            target[waiting[certain], : source.shape[1]] = source[certain]
        waiting = waiting[~certain]
        depth *= _GROWTH
    return best


def rescored(queries: Array, rows: Array, searched: Searched, k: int) -> tuple[Array, Array]:
    """The k best of each query's candidate `rows` (nq, m), -1 for none, by their float64 closeness."""
    step = max(1, _NUMBERS_AT_ONCE // max(1, rows.shape[1] * queries.shape[1]))
    places = [slice(start, start + step) for start in range(0, len(queries), step)]
    parts = [_closeness(queries[here], searched.vectors[rows[here]], searched.metric) for here in places]
    closeness = parts[0] if len(parts) == 1 else np.concatenate([np.empty((0, rows.shape[1])), *parts])
    closeness[rows < 0] = -np.inf
    return best_of(closeness, rows, rows, k)


def best_of(closeness: Array, names: Array, ties: Array, k: int) -> tuple[Array, Array]:
    """The k highest of each row of `closeness` (nq, m) and their `names` (nq, m); equal ones by `ties` (nq, m)."""
    order = np.lexsort((ties, -closeness), axis=-1)[:, :k]
    row = np.arange(len(order))[:, None]
    return closeness[row, order], names[row, order]


def faced_queries(queries: Array, metric: Metric) -> Array:
    """The queries as Faiss sees them: unit rows for cosine."""
    return _unit_rows(queries, _norms(queries)) if metric == "cosine" else queries


def scores(closeness: Array, metric: Metric) -> Array:
    """What a person is shown: the cosine, the inner product, or the Euclidean distance."""
    return np.sqrt(-closeness) if metric == "l2" else closeness


def _candidates(asked: Array, searched: Searched, depth: int) -> tuple[Array, Array]:
    """Faiss's lowest closeness of each query's candidates (nq,), and their rows (nq, depth)."""
    euclidean = searched.metric == "l2"
    with for_batch(len(asked)):
        values, rows = faiss.knn(
            asked, searched.faced, depth, metric=faiss.METRIC_L2 if euclidean else faiss.METRIC_INNER_PRODUCT
        )
    lowest = values[:, -1].astype(np.float64)
    return (-lowest if euclidean else lowest), rows


def _closeness(queries: Array, vectors: Array, metric: Metric) -> Array:
    """Float64 (nq, m) of (nq, d) and (nq, m, d), higher is nearer. Sums run within a row, whatever the others."""
    queries, vectors = queries.astype(np.float64), vectors.astype(np.float64)
    if metric == "l2":
        vectors -= queries[:, None]
        return -_products(vectors, vectors)
    products: Array = np.einsum("qmd,qd->qm", vectors, queries)
    if metric == "inner_product":
        return products
    lengths = np.sqrt(np.einsum("qd,qd->q", queries, queries))[:, None]
    return np.asarray(products / (np.sqrt(_products(vectors, vectors)) * lengths))


def _products(one: Array, other: Array) -> Array:
    products: Array = np.einsum("qmd,qmd->qm", one, other)
    return products


def _rounding(query_norms: Array, searched: Searched) -> Array:
    """Bound (nq,) on what float32 arithmetic can change a closeness by.

    A dot product of d terms is off by at most d u |q| |g| / (1 - d u) (Higham, Accuracy and Stability of Numerical
    Algorithms, section 3.1), u = 2^-24; the squared distance through |q|^2 + |g|^2 - 2 q.g by as much of (|q| + |g|)^2.
    Both are doubled, with room for rows that are nearly unit and for products that underflow.
    """
    terms = searched.vectors.shape[1] + 16
    scale = (query_norms + searched.longest) ** 2 if searched.metric == "l2" else query_norms * searched.longest
    return np.asarray(terms * (_EPSILON * scale + np.finfo(np.float32).tiny))


def _norms(vectors: Array) -> Array:
    """L2 norms (n,) in float64, so that no float32 row under- or overflows."""
    if len(vectors) <= _ROWS_AT_ONCE:
        return np.asarray(np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=1)))
    norms = np.empty(len(vectors))
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        here = slice(start, start + _ROWS_AT_ONCE)
        norms[here] = np.sqrt(np.square(vectors[here], dtype=np.float64).sum(axis=1))
    return norms


def _unit_rows(vectors: Array, norms: Array) -> Array:
    """Rows (n, d) divided by their norms, float32."""
    if len(vectors) <= _ROWS_AT_ONCE:
        return np.asarray((vectors / norms[:, None]).astype(np.float32))
    result = np.empty_like(vectors)
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        here = slice(start, start + _ROWS_AT_ONCE)
        result[here] = vectors[here] / norms[here, None]
    return result
