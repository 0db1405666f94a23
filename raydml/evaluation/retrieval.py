"""Embeddings and labels of queries and a gallery -> exact retrieval metrics, one value a query.

Ranks are by score descending, ties by gallery row ascending; labels are compared as int64.
"""

from __future__ import annotations

from typing import Any, get_args

import numpy as np

from raydml.errors import DataError, SpecError
from raydml.evaluation.checks import check_labels, check_own
from raydml.evaluation.ranking import QUERY_BLOCK, Metric, Scorer, ranked

__all__ = ["QUERY_BLOCK", "retrieval", "summarise"]

Array = np.ndarray[Any, Any]


def retrieval(
    queries: Array,
    query_labels: Array,
    gallery: Array,
    gallery_labels: Array,
    *,
    own: Array | None,
    metric: Metric = "cosine",
    recall_at: tuple[int, ...] = (1, 10, 100),
) -> dict[str, Array]:
    """Metrics of each query: float64 (nq,) by name, NaN for a query without a positive in the gallery.

    `queries` (nq, d) and `gallery` (ng, d) are finite numbers, labels are integers. `own[i]` is the gallery row that
    is query i itself and does not count, or -1; None: no query is in the gallery. With R the number of positives:

    - precision_at_1: 1 if the first rank is a positive
    - r_precision: positives among the first R ranks / R
    - map_at_r: 1/R sum over i <= R of [rank i is positive] x (positives among the first i) / i
      (Musgrave, Belongie and Lim, A Metric Learning Reality Check, ECCV 2020)
    - recall_at_K: 1 if there is a positive among the first K ranks

    A query's values do not depend on the other queries, so workers that split the queries at multiples of QUERY_BLOCK
    get together what one gets alone, bit for bit. Memory beyond the inputs is bounded, whatever nq, ng and R. A zero
    vector has cosine 0 with everything. DataError for rows that are not finite, an empty gallery or wrong shapes.
    """
    if queries.ndim == gallery.ndim == 2 and queries.shape[1] != gallery.shape[1]:
        raise DataError(f"queries have dimension {queries.shape[1]}, the gallery {gallery.shape[1]}: they must agree")
    if metric not in get_args(Metric):
        raise SpecError(f"metric {metric!r} is unknown: choose from {', '.join(get_args(Metric))}")
    if len(gallery) == 0:
        raise DataError("the gallery is empty: there is nothing to rank")
    if any(depth < 1 for depth in recall_at):
        raise DataError(f"recall_at = {recall_at}: every rank must be at least 1")
    query_labels = check_labels("query_labels", query_labels, len(queries))
    gallery_labels = check_labels("gallery_labels", gallery_labels, len(gallery))
    own = check_own(own, query_labels, gallery_labels)
    scorer = Scorer.of(queries, gallery, metric)
    num_positives = _count_positives(query_labels, gallery_labels) - (own >= 0)
    values = {name: np.full(len(queries), np.nan) for name in _names(recall_at)}
    for block in range(0, len(queries), QUERY_BLOCK):
        here = slice(block, block + QUERY_BLOCK)
        depths = np.minimum(np.maximum(num_positives[here], max(recall_at, default=1)), len(gallery))
        for part, rows in ranked(scorer, block, depths, own[here]):
            some = slice(block + part.start, block + part.stop)
            hits = (gallery_labels[rows] == query_labels[some, None]) & (rows != own[some, None])
            for name, value in _measure(hits, num_positives[some], recall_at).items():
                values[name][some] = np.where(num_positives[some] > 0, value, np.nan)
    return values


def summarise(values: dict[str, Array]) -> dict[str, float]:
    """Means over the queries that have a positive, with the counts `queries` and `queries_without_positive`.

    `queries` counts all of them. DataError when no query has a positive, as a mean of nothing is not a number.
    """
    first = next(iter(values.values()))
    counted = ~np.isnan(first)
    if not counted.any():
        raise DataError(
            f"none of {len(first)} queries has a positive in the gallery: every class there has one item, or another "
            f"split was searched",
            queries=len(first),
        )
    means = {name: float(value[counted].mean()) for name, value in values.items()}
    return {**means, "queries": float(len(first)), "queries_without_positive": float((~counted).sum())}


def _names(recall_at: tuple[int, ...]) -> list[str]:
    return ["precision_at_1", "r_precision", "map_at_r", *(f"recall_at_{depth}" for depth in recall_at)]


def _count_positives(query_labels: Array, gallery_labels: Array) -> Array:
    """Gallery rows with each query's label: int64 (nq,), by binary search in the sorted labels."""
    ordered = np.sort(gallery_labels)
    return np.searchsorted(ordered, query_labels, "right") - np.searchsorted(ordered, query_labels, "left")


def _measure(hits: Array, num_positives: Array, recall_at: tuple[int, ...]) -> dict[str, Array]:
    """Metrics from `hits` (b, ranks), whether each rank holds a positive; all 0 where num_positives is 0."""
    ranks = np.arange(1, hits.shape[1] + 1)
    within = hits & (ranks <= num_positives[:, None])
    found = within.cumsum(axis=1)
    total = np.maximum(num_positives, 1)
    # A running sum adds in order of rank, so that the ranks computed for a neighbour's sake do not change the rounding.
    precisions = np.where(within, found / ranks, 0.0).cumsum(axis=1)[:, -1]
    recalls = {f"recall_at_{depth}": np.asarray(hits[:, :depth].any(axis=1), np.float64) for depth in recall_at}
    return {
        "precision_at_1": hits[:, 0].astype(np.float64),
        "r_precision": found[:, -1] / total,
        "map_at_r": precisions / total,
        **recalls,
    }
