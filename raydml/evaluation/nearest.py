"""Some queries and a gallery -> the gallery rows nearest to each query, in the order in which metrics count ranks."""

from __future__ import annotations

import numpy as np

from raydml.evaluation.scores import Array, Metric, Scorer

_NUMBERS = 2**22  # scores held at once: 32 MiB


def nearest(queries: Array, gallery: Array, own: Array, *, depth: int, metric: Metric) -> tuple[Array, Array]:
    """Gallery rows int64 (nq, depth) and their scores float64 (nq, depth), nearest first, ties by row ascending.

    `own[i]` is the gallery row that is query i itself and is left out, or -1. Scores are the cosine, minus the
    Euclidean distance, or minus the Manhattan distance. Fewer columns where the gallery is smaller; where it is not
    by the own row alone, that row fills the last place as -1, with score NaN. DataError for rows that are not finite.
    """
    scorer = Scorer.of(queries, gallery, metric)
    depth = min(depth, len(gallery))
    rows, scores = np.full((len(queries), depth), -1), np.full((len(queries), depth), np.nan)
    together = max(1, _NUMBERS // max(1, len(gallery)))
    for start in range(0, len(queries), together):
        places = np.arange(start, min(start + together, len(queries)))
        rough = _rough(scorer, places)
        for place, row_scores in zip(places, rough, strict=True):
            found = _first(scorer, int(place), row_scores, int(own[place]), depth)
            rows[place, : len(found)] = found
            scores[place, : len(found)] = _distances(queries[place], gallery[found], metric)
    return rows, scores


def _rough(scorer: Scorer, queries: Array) -> Array:
    """Scores of these queries with the whole gallery, off by float64's error at most."""
    everything = np.arange(len(scorer.gallery))
    asked = scorer.asked(queries, np.empty((len(queries), scorer.gallery.shape[1])))
    scores = np.empty((len(queries), len(everything)))
    step = max(1, _NUMBERS // scorer.gallery.shape[1])
    for start in range(0, len(everything), step):
        part = everything[start : start + step]
        products = np.empty((len(queries), len(part)))
        scorer.products(asked, scorer.given(part, np.empty((len(part), asked.shape[1]))), products)
        scores[:, part] = scorer.scores(products, part)
    return scores


def _first(scorer: Scorer, query: int, rough: Array, own: int, depth: int) -> Array:
    """The `depth` nearest rows of one query; those that rounding could have exchanged are scored exactly."""
    if own >= 0:
        rough[own] = -np.inf
    last = np.partition(rough, len(rough) - depth)[len(rough) - depth]
    near = np.flatnonzero((rough >= last - 2 * scorer.error(np.float64)) & (rough > -np.inf))
    exact = scorer.exact(np.full(len(near), query), near)
    return np.asarray(near[np.lexsort((near, -exact))][:depth])


def _distances(query: Array, rows: Array, metric: Metric) -> Array:
    """What a person calls the score of each row (n, d)."""
    query, rows = query.astype(np.float64), rows.astype(np.float64)
    if metric == "manhattan":
        return np.asarray(-np.abs(rows - query).sum(axis=1))
    if metric == "euclidean":
        return np.asarray(-np.sqrt(np.square(rows - query).sum(axis=1)))
    lengths = np.sqrt(np.square(rows).sum(axis=1) * np.square(query).sum())
    return np.asarray(np.divide(rows @ query, lengths, out=np.zeros(len(rows)), where=lengths > 0))
