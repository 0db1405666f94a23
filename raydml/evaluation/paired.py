"""Metrics of the same queries by two models, or by several seeds of two configurations -> what was gained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from raydml.errors import DataError
from raydml.evaluation.intervals import resampled_means
from raydml.evaluation.scores import Array

Values = dict[str, Array]  # float64 (nq,) by metric, NaN for a query without a positive


@dataclass(frozen=True)
class Resampling:
    """How an interval is made; `classes` (nq,) draws whole classes of queries instead of single ones."""

    confidence: float = 0.95
    repeats: int = 1000
    seed: int = 0
    classes: Array | None = None


@dataclass(frozen=True)
class Difference:
    """Of one metric: means over queries and seeds before and after, and the interval of what was gained."""

    before: float
    after: float
    low: float
    high: float

    @property
    def gained(self) -> float:
        """After less before."""
        return self.after - self.before

    @property
    def significant(self) -> bool:
        """Whether no difference at all lies outside of the interval."""
        return self.low > 0 or self.high < 0


def differences(before: Values, after: Values, how: Resampling) -> dict[str, Difference]:
    """Of one model and another: the paired bootstrap, percentiles of resampled means of each query's difference.

    A resample draws the same queries for both models, so that a query which is hard for both widens nothing (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3; Koehn, EMNLP 2004). It says what other queries
    would give, not what other seeds of training would.
    """
    means = _resampled(_gained(before, after), how)
    low, high = np.quantile(means, [(1 - how.confidence) / 2, (1 + how.confidence) / 2], axis=0)
    return {
        name: Difference(_mean(before[name]), _mean(after[name]), float(low[place]), float(high[place]))
        for place, name in enumerate(before)
    }


def differences_over_seeds(
    before: Sequence[Values], after: Sequence[Values], how: Resampling, *, paired: bool
) -> dict[str, Difference]:
    """Of several seeds of one configuration and of another; `paired`: before[i] and after[i] are of one seed.

    Two things are drawn by chance: seeds, and queries that are the same for all seeds. With S seeds, D_s the mean gain
    of seed s and d_q that of query q, the variance of the mean gain is var(D_s) / S (unpaired: the sum of both sides'
    var / S) plus the bootstrap variance of the mean of d_q, and its degrees of freedom are Satterthwaite's (Biometrics
    Bulletin 2, 1946). A bootstrap of few seeds would be too narrow: it draws with var (S - 1) / S, and normal tails.
    What seed and query do together is counted in both parts, so that the interval is a little wide. DataError for a
    single seed on a side.
    """
    fewest = min(len(before), len(after))
    if fewest < 2:
        raise DataError(f"{len(before)} seeds before and {len(after)} after: give two or more of each, or one of each")
    centre_before, centre_after = _over_seeds(before), _over_seeds(after)
    queries = _resampled(_gained(centre_before, centre_after), how).var(axis=0, ddof=1)
    units = _units(centre_before, how)
    found = {}
    for place, name in enumerate(centre_before):
        old, new = (np.array([_mean(values[name]) for values in side]) for side in (before, after))
        parts = [(_variance_of_mean(new - old), len(old) - 1)] if paired else []
        parts = parts or [(_variance_of_mean(side), len(side) - 1) for side in (old, new)]
        width = _half_width([*parts, (float(queries[place]), units - 1)], how.confidence)
        gained = float(new.mean() - old.mean())
        found[name] = Difference(float(old.mean()), float(new.mean()), gained - width, gained + width)
    return found


def _half_width(parts: Sequence[tuple[float, int]], confidence: float) -> float:
    """Of an interval whose variance is the sum of some, each known with so many degrees of freedom."""
    total = sum(variance for variance, _ in parts)
    if total == 0:
        return 0.0
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in parts if degrees)
    return float(stdtrit(freedom, (1 + confidence) / 2) * np.sqrt(total))


def _variance_of_mean(values: Array) -> float:
    return float(values.var(ddof=1) / len(values))


def _resampled(gained: Values, how: Resampling) -> Array:
    return resampled_means(gained, repeats=how.repeats, seed=how.seed, classes=how.classes)


def _units(values: Values, how: Resampling) -> int:
    """What is drawn anew: queries with a positive, or their classes."""
    counted = ~np.isnan(next(iter(values.values())))
    return int(counted.sum()) if how.classes is None else len(np.unique(how.classes[counted]))


def _gained(before: Values, after: Values) -> Values:
    return {name: after[name] - before[name] for name in before}


def _over_seeds(side: Sequence[Values]) -> Values:
    return {name: np.mean([values[name] for values in side], axis=0) for name in side[0]}


def _mean(values: Array) -> float:
    """Over the queries that have a positive."""
    return float(values[~np.isnan(values)].mean())
