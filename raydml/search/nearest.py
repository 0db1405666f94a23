"""Queries and stored vectors -> the k nearest rows of each query, exactly, by (closeness, key).

Faiss finds candidates in float32, whose rounding depends on the size of the batch. The candidates' closeness is then
computed in float64, each from its two vectors alone, and a query is done when float32 rounding cannot have hidden a
better row; otherwise it asks for more candidates. So hits do not depend on batches, threads or BLAS, nor on how rows
lie in pools; equal vectors tie exactly and come in the order of their keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import faiss
import numpy as np

from raydml.search.blas import for_batch
from raydml.search.items import Array, Metric

_SPARE = 8  # candidates beyond k, so that ties and rounding at rank k rarely need a second look
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


@dataclass(frozen=True)
class Pool:
    """Rows to scan: their keys (n,), int64, None: their own numbers; and which of them may be hits, (n,) bool."""

    searched: Searched
    keys: Array | None = None
    usable: Array | None = None

    def __len__(self) -> int:
        return len(self.searched.vectors)

    @property
    def hits(self) -> int:
        """Rows that may be hits."""
        return len(self) if self.usable is None else int(np.count_nonzero(self.usable))


def nearest(queries: Array, searched: Searched, k: int, usable: Array | None = None) -> tuple[Array, Array]:
    """Of one pool: closeness (nq, k) and rows (nq, k)."""
    return nearest_of(queries, [Pool(searched, None, usable)], k)


def nearest_of(queries: Array, pools: Sequence[Pool], k: int) -> tuple[Array, Array]:
    """Closeness (nq, k) in float64, highest first, and keys (nq, k); -inf and -1 where there are no more.

    `queries` is float32 (nq, d); at least one pool, all of one metric. Closeness is the cosine, the inner product, or
    minus the squared Euclidean distance.
    """
    best = np.full((len(queries), k), -np.inf), np.full((len(queries), k), -1)
    pools = [pool for pool in pools if pool.hits]
    if not pools:
        return best
    asked = faced_queries(queries, pools[0].searched.metric)
    longest = max(pool.searched.longest for pool in pools)
    slack = _rounding(_norms(asked), longest, pools[0].searched)
    waiting, depth = np.arange(len(queries)), k + _SPARE
    while len(waiting):
        bound, places = _candidates(asked[waiting], pools, depth)
        closeness, keys = _compared(queries[waiting], places, pools, k)
        certain = (bound == -np.inf) | (bound + slack[waiting] < closeness[:, -1])
        for target, source in zip(best, (closeness, keys), strict=True):
            target[waiting[certain], : source.shape[1]] = source[certain]
        waiting = waiting[~certain]
        depth *= _GROWTH
    return best


def rescored(queries: Array, rows: Array, searched: Searched, k: int) -> tuple[Array, Array]:
    """The k best of each query's candidate `rows` (nq, m), -1 for none, by their float64 closeness."""
    return _compared(queries, rows, [Pool(searched)], k)


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


def _candidates(asked: Array, pools: Sequence[Pool], depth: int) -> tuple[Array, Array]:
    """What no other row's closeness exceeds by Faiss (nq,), -inf where there is no other; and places (nq, m) through
    the pools, -1 for none, of the `depth` rows whose closeness Faiss finds the highest."""
    values, places = np.empty((len(asked), 0), np.float32), np.empty((len(asked), 0), np.int64)
    bound, start = np.full(len(asked), -np.inf), 0
    for pool in pools:
        wanted = min(len(pool), int(depth * len(pool) / pool.hits) + 1)
        found, rows = _knn(asked, pool.searched, wanted)
        if wanted < len(pool):
            bound = np.maximum(bound, found[:, -1])
        there = rows >= 0 if pool.usable is None else pool.usable[rows]
        found, rows = np.where(there, found, -np.inf), np.where(there, rows + start, -1)
        values, places = np.concatenate([values, found], axis=1), np.concatenate([places, rows], axis=1)
        start += len(pool)
    if places.shape[1] > depth:
        order = np.argpartition(-values, depth, axis=1)
        bound = np.maximum(bound, np.take_along_axis(values, order[:, depth:], axis=1).max(axis=1))
        places = np.take_along_axis(places, order[:, :depth], axis=1)
    return bound, places


def _knn(asked: Array, searched: Searched, depth: int) -> tuple[Array, Array]:
    """Faiss's closeness of each query's candidates, the highest first, and their rows; (nq, depth) both."""
    euclidean = searched.metric == "l2"
    with for_batch(len(asked)):
        values, rows = faiss.knn(
            asked, searched.faced, depth, metric=faiss.METRIC_L2 if euclidean else faiss.METRIC_INNER_PRODUCT
        )
    return (-values if euclidean else values), rows


def _compared(queries: Array, places: Array, pools: Sequence[Pool], k: int) -> tuple[Array, Array]:
    """The k best of each query's `places` (nq, m) by their float64 closeness, and their keys; equal ones by keys."""
    metric = pools[0].searched.metric
    step = max(1, _NUMBERS_AT_ONCE // max(1, places.shape[1] * queries.shape[1]))
    parts = [np.empty((0, places.shape[1]))]
    keys = np.empty_like(places)
    for start in range(0, len(queries), step):
        here = slice(start, start + step)
        vectors, keys[here] = _gathered(np.maximum(places[here], 0), pools)
        parts.append(_closeness(queries[here], vectors, metric))
    closeness = parts[1] if len(parts) == 2 else np.concatenate(parts)
    closeness[places < 0], keys[places < 0] = -np.inf, -1
    return best_of(closeness, keys, keys, k)


def _gathered(places: Array, pools: Sequence[Pool]) -> tuple[Array, Array]:
    """The vectors (nq, m, d) at places (nq, m) through the pools, and their keys (nq, m)."""
    if len(pools) == 1:
        return pools[0].searched.vectors[places], places if pools[0].keys is None else pools[0].keys[places]
    vectors = np.empty((*places.shape, pools[0].searched.vectors.shape[1]), dtype=np.float32)
    keys = np.empty_like(places)
    start = 0
    for pool in pools:
        inside = (start <= places) & (places < start + len(pool))
        rows = places[inside] - start
        vectors[inside], keys[inside] = pool.searched.vectors[rows], rows if pool.keys is None else pool.keys[rows]
        start += len(pool)
    return vectors, keys


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


def _rounding(query_norms: Array, longest: float, searched: Searched) -> Array:
    """Bound (nq,) on what float32 arithmetic can change a closeness by, of rows that are not longer than `longest`.

    A dot product of d terms is off by at most d u |q| |g| / (1 - d u) (Higham, Accuracy and Stability of Numerical
    Algorithms, section 3.1), u = 2^-24; the squared distance through |q|^2 + |g|^2 - 2 q.g by as much of (|q| + |g|)^2.
    Both are doubled, with room for rows that are nearly unit and for products that underflow.
    """
    terms = searched.vectors.shape[1] + 16
    scale = (query_norms + longest) ** 2 if searched.metric == "l2" else query_norms * longest
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
