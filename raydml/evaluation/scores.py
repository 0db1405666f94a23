"""Queries and a gallery -> how near they are: exactly, pair by pair, or many at once with a bound on the difference.

An exact score is summed in float64 in an order of its own, so that it depends on its two vectors alone: neither on
other pairs nor on the size of the gallery. Equal vectors therefore tie exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch

from raydml.errors import SpecError
from raydml.evaluation.checks import squared_norms

Metric = Literal["cosine", "euclidean", "manhattan"]
Array = np.ndarray[Any, Any]

SPAN = 8.0  # wider than the scores of a query lie apart
_COORDINATES = 2**18  # of exact scores at once
_FLOOR = 2.0**-38  # far above the rounding in float64 of SPAN x some hundred queries
_HALF = {np.dtype(np.float32): 2.0**-24, np.dtype(np.float64): 2.0**-53}  # what rounding changes 1 by, at most
_LARGE = 2.0**60  # the inverse of a vector's length, of which float32 surely holds both


def check_metric(metric: str) -> Metric:
    """The distance of this name. Raises SpecError where there is none."""
    known = get_args(Metric)
    if metric not in known:
        raise SpecError(f"metric {metric!r} is unknown: choose from {', '.join(known)}")
    found: Metric = known[known.index(metric)]
    return found


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
    offsets: tuple[Array, Array] | None  # |q|^2 / M^2 (nq,) and |g|^2 / M^2 (ng,)

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
        return cls(
            queries, gallery, metric, 2 * factors[0], factors[1], (query_norms * unit**2, gallery_norms * unit**2)
        )

    def rough_type(self, num_positives: float) -> Any:
        """Type of products for queries with so many positives.

        The more positives, the more negatives are looked at, and the larger is the share of these that lie within
        float32's rounding of a positive and are scored exactly: from about the root of four times the gallery on that
        costs more than products in float64. Manhattan distances gain nothing from float32.
        """
        many = num_positives**2 > 4 * len(self.gallery)
        return np.float64 if many or self.metric == "manhattan" else np.float32

    def error(self, kind: Any) -> float:
        """What a score of products in float32 or float64 differs from the exact one by at most.

        A dot product of d terms is off by at most d u |q| |g| / (1 - d u) in any order of summation (Higham, Accuracy
        and Stability of Numerical Algorithms, section 3.1), u = 2^-24 or 2^-53; doubled, with room for the rounding of
        the vectors and of shifts. The sizes |q| |g| are at most 1 for cosine, and 2 + 1 with |g|^2 for Euclidean.
        """
        size, unit = 1 if self.metric == "cosine" else 3, _HALF[np.dtype(kind)]
        return float((self.gallery.shape[1] + 8) * 2 * unit * size + _FLOOR)

    def asked(self, queries: Array, out: Array) -> Array:
        """These rows of the queries, scaled: `out` (len(queries), d), in its type."""
        return _scaled(self.queries, queries, self.query_scale, out)

    def given(self, rows: Array, out: Array) -> Array:
        """These rows of the gallery, scaled: `out` (len(rows), d), in its type."""
        return _scaled(self.gallery, rows, self.gallery_scale, out)

    def products(self, asked: Array, given: Array, out: Array) -> None:
        """Product of each scaled query and each scaled gallery row into `out` (queries, rows), of their type."""
        if self.metric == "manhattan":
            np.negative(torch.cdist(torch.from_numpy(asked), torch.from_numpy(given), p=1).numpy(), out=out)
        else:
            np.matmul(asked, given.T, out=out)

    def shift(self, products: Array, queries: Array, rows: Array) -> None:
        """Turn products of these queries and gallery rows into shifted scores, in place.

        Shifted scores, which are less by |q|^2 / M^2 if Euclidean, do not change when q and g change places.
        """
        if self.offsets is not None:
            products -= self.offsets[1][rows].astype(products.dtype)
            products -= self.offsets[0][queries].astype(products.dtype)[:, None]

    def shifted(self, scores: Array, queries: Array) -> Array:
        """Shifted scores of these scores, one of each query."""
        return scores if self.offsets is None else scores - self.offsets[0][queries]

    def unshifted(self, scores: Array, queries: Array) -> Array:
        """The scores themselves."""
        return scores if self.offsets is None else scores + self.offsets[0][queries]

    def scores(self, products: Array, rows: Array) -> Array:
        """Scores of products, one with each of these gallery rows."""
        return products if self.offsets is None else products - self.offsets[1][rows]

    def exact(self, queries: Array, rows: Array) -> Array:
        """Score of each pair of a query `queries[i]` and a gallery row `rows[i]`: float64 (pairs,)."""
        dimension = self.gallery.shape[1]
        scores, step = np.empty(len(rows)), max(1, _COORDINATES // dimension)
        space = np.empty((2, min(step, len(rows)), dimension))
        for start in range(0, len(rows), step):
            here = slice(start, min(start + step, len(rows)))
            asked = self.asked(queries[here], space[0, : here.stop - start])
            given = self.given(rows[here], space[1, : here.stop - start])
            if self.metric == "manhattan":
                scores[here] = -np.abs(np.subtract(asked, given, out=asked), out=asked).sum(axis=1)
            else:
                scores[here] = np.einsum("ij,ij->i", asked, given)
        return self.scores(scores, rows)


def _scaled(vectors: Array, rows: Array, scale: Array, out: Array) -> Array:
    """`vectors[rows]` times their factors, in float64 unless `vectors` and `out` are float32 and stay in its range."""
    factors = scale[rows][:, None]
    if vectors.dtype == out.dtype == np.float32 and factors.max() < _LARGE and factors.min() > 1 / _LARGE:
        np.take(vectors, rows, axis=0, out=out, mode="clip")  # "raise" would copy; rows are in range
    elif out.dtype == np.float64:
        out[:] = vectors[rows]
    else:
        return np.multiply(vectors[rows], factors, out=out, casting="same_kind")
    out *= factors.astype(out.dtype)
    return out


def _inverse_root(squares: Array) -> Array:
    """1 / sqrt, and 0 of 0: a vector of length zero has cosine 0 with everything."""
    roots = np.sqrt(squares)
    return np.divide(1.0, roots, out=np.zeros_like(roots), where=roots > 0)
