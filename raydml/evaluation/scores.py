"""Queries and a gallery -> how near they are: exactly in float64, or roughly and fast with a bound on the difference.

Exact scores come from products of one fixed shape (TILE x TILE, padded with zeros), so that a score depends on its
two vectors alone: neither on the other queries nor on the size of the gallery. Equal vectors therefore tie exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from raydml.evaluation.checks import squared_norms

Metric = Literal["cosine", "euclidean", "manhattan"]
Array = np.ndarray[Any, Any]

TILE = 64  # queries, and gallery rows, of one exact product
DIMENSION_TILE = 1024  # coordinates multiplied at a time
SPAN = 8.0  # wider than the scores of a query lie apart
_FLOOR = (
    2.0**-30
)  # far above the rounding of SPAN x some thousand queries in float64, far below that of scores in float32


@dataclass(frozen=True)
class Scorer:
    """Scores of queries (nq, d) against a gallery (ng, d): higher is nearer, all within [-SPAN / 2, SPAN / 2].

    For cosine it is the cosine; for Euclidean (2 q.g - |g|^2) / M^2, as |q|^2 does not change a query's order; for
    Manhattan -|q - g|_1 / M; M is a power of two that no vector's norm exceeds, and twice that for Manhattan.
    """

    queries: Array
    gallery: Array
    metric: Metric
    query_scale: Array  # (nq,) factor of each query
    gallery_scale: Array  # (ng,) factor of each gallery row
    gallery_offset: Array | None  # (ng,) subtracted from each gallery row's scores

    @classmethod
    def of(cls, queries: Array, gallery: Array, metric: Metric) -> Scorer:
        """Check and prepare; DataError for rows that are not finite."""
        query_norms, gallery_norms = squared_norms("queries", queries), squared_norms("gallery", gallery)
        if metric == "cosine":
            return cls(queries, gallery, metric, _inverse_root(query_norms), _inverse_root(gallery_norms), None)
        length = float(np.sqrt(max(query_norms.max(initial=0.0), gallery_norms.max(initial=0.0))))
        if metric == "manhattan":  # |x|_1 <= sqrt(d) |x|_2
            length *= 2 * np.sqrt(queries.shape[1])
        unit = 2.0 ** -np.ceil(np.log2(length)) if length else 1.0
        factors = np.full(len(queries), unit), np.full(len(gallery), unit)
        if metric == "manhattan":
            return cls(queries, gallery, metric, *factors, None)
        return cls(queries, gallery, metric, 2 * factors[0], factors[1], gallery_norms * unit**2)

    @property
    def slack(self) -> float:
        """What a rough score differs from the exact one by at most.

        A dot product of d terms is off by at most d u |q| |g| / (1 - d u) in any order of summation (Higham, Accuracy
        and Stability of Numerical Algorithms, section 3.1), u = 2^-24; doubled, with room for the rounding of the
        vectors and of the offset. The products' sizes |q| |g| are at most 1 for cosine, 2 + 1 with the offset else.
        """
        if self.metric == "manhattan":
            return _FLOOR
        terms = self.gallery.shape[1] + self.gallery.shape[1] // DIMENSION_TILE + 8
        return float(terms * 2.0**-23 * (1 if self.metric == "cosine" else 3) + _FLOOR)

    def rough(self, queries: Array, start: int, stop: int, space: Array) -> Array:
        """Scores of these rows of the queries against the gallery from `start` to `stop`: (b, stop - start).

        They are written into `space`, flat and of the type of scores to be had: float32, but float64 for Manhattan
        distances, which gain nothing from float32.
        """
        scores = space[: len(queries) * (stop - start)].reshape(len(queries), stop - start)
        self._products(queries, slice(start, stop), scores)
        if self.gallery_offset is not None:
            scores -= self.gallery_offset[start:stop].astype(scores.dtype)
        return scores

    @property
    def rough_type(self) -> type:
        """Type of rough scores."""
        return np.float64 if self.metric == "manhattan" else np.float32

    def exact(self, queries: Array, places: Array, rows: Array) -> Array:
        """Score of each pair of a query, `queries[places[i]]`, and gallery row `rows[i]`: float64 (pairs,).

        `places` ascends.
        """
        starts = range(0, len(queries), TILE)
        bounds = np.searchsorted(places, [*starts, len(queries)])
        parts = [
            self._exact(queries[start : start + TILE], places[low:high] - start, rows[low:high])
            for start, low, high in zip(starts, bounds[:-1], bounds[1:], strict=True)
        ]
        return np.concatenate(parts)

    def _exact(self, queries: Array, places: Array, rows: Array) -> Array:
        """The same for at most TILE queries; each gallery row that occurs is multiplied once."""
        columns, column = np.unique(rows, return_inverse=True)
        order = np.argsort(column, kind="stable")
        bounds = np.searchsorted(column[order], np.arange(0, len(columns) + TILE, TILE))
        scores, tile = np.empty(len(rows)), np.empty((TILE, TILE))
        for part, start in enumerate(range(0, len(columns), TILE)):
            here = order[bounds[part] : bounds[part + 1]]
            self._products(queries, columns[start : start + TILE], tile)
            scores[here] = tile[places[here], column[here] - start]
        return scores if self.gallery_offset is None else scores - self.gallery_offset[rows]

    def _products(self, queries: Array, rows: Array | slice, scores: Array) -> None:
        """Products (or minus the L1 distances) of scaled rows into `scores`, of whose shape zeros fill up the rest."""
        for low in range(0, self.gallery.shape[1], DIMENSION_TILE):
            part = slice(low, low + DIMENSION_TILE)
            asked = _scaled(self.queries[queries, part], self.query_scale[queries], scores.dtype, scores.shape[0])
            given = _scaled(self.gallery[rows, part], self.gallery_scale[rows], scores.dtype, scores.shape[1])
            if self.metric == "manhattan":
                here = -torch.cdist(torch.from_numpy(asked), torch.from_numpy(given), p=1).numpy()
                scores[:] = here if low == 0 else scores + here
            elif low == 0:
                np.matmul(asked, given.T, out=scores)
            else:
                scores += asked @ given.T


def _scaled(rows: Array, scale: Array, kind: Any, length: int) -> Array:
    result = np.empty((length, rows.shape[1]), dtype=kind)
    np.multiply(rows, scale[:, None], out=result[: len(rows)], casting="same_kind")
    result[len(rows) :] = 0.0
    return result


def _inverse_root(squares: Array) -> Array:
    """1 / sqrt, and 0 of 0: a vector of length zero has cosine 0 with everything."""
    roots = np.sqrt(squares)
    return np.divide(1.0, roots, out=np.zeros_like(roots), where=roots > 0)
