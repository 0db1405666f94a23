"""Metrics of each query -> how far their means may be off, from resamples of the queries or of their classes."""

from __future__ import annotations

import numpy as np

from raydml.errors import DataError
from raydml.evaluation.scores import Array


def intervals(
    values: dict[str, Array],
    *,
    confidence: float,
    repeats: int,
    seed: int,
    classes: Array | None = None,
) -> dict[str, tuple[float, float]]:
    """(low, high) of the mean of each metric: percentiles of `repeats` bootstrap means.

    `values` (nq,) by name are those of `retrieval`; queries without a positive (NaN) are left out, as they are from the
    mean. A resample draws as many queries as there are, with replacement (Efron and Tibshirani, An Introduction to
    the Bootstrap, 1993, section 13.3). Queries of one class are correlated: they share positives, and a class that is
    hard is hard for all of them. Resampled one by one they look independent, so the interval says what other pictures
    of the same classes would give. With `classes` (nq,), integers, whole classes are drawn instead (the cluster
    bootstrap: Davison and Hinkley, 1997, section 3.8), which says what other classes would give and is mostly wider.
    Memory is one number a query and repeats x metrics. DataError when no query has a positive.
    """
    means = resampled_means(values, repeats=repeats, seed=seed, classes=classes)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return {name: (float(low[place]), float(high[place])) for place, name in enumerate(values)}


def resampled_means(values: dict[str, Array], *, repeats: int, seed: int, classes: Array | None = None) -> Array:
    """Means of each metric in `repeats` resamples, float64 (repeats, metrics), whose percentiles are `intervals`."""
    table = np.stack(list(values.values()), axis=1)
    counted = ~np.isnan(table[:, 0])
    if not counted.any():
        raise DataError(f"none of {len(table)} queries has a positive in the gallery: there is nothing to resample")
    sums, sizes = table[counted], np.ones(int(counted.sum()))
    if classes is not None:
        sums, sizes = _by_class(sums, classes[counted])
    random = np.random.default_rng(seed)
    means = np.empty((repeats, len(values)))
    for mean in means:
        drawn = random.integers(0, len(sizes), len(sizes))
        times = np.bincount(drawn, minlength=len(sizes)).astype(np.float64)
        mean[:] = times @ sums / (times @ sizes)
    return means


def _by_class(values: Array, classes: Array) -> tuple[Array, Array]:
    """Sums of the values (classes, metrics) and numbers of queries (classes,) of each class."""
    _, place, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    sums = [np.bincount(place, column, minlength=len(sizes)) for column in values.T]
    return np.stack(sums, axis=1), sizes.astype(np.float64)
