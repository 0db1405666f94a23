"""A score of each configuration and seed -> who leads, and whose distance to the best may be chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
from scipy.special import stdtr, stdtrit

from raydml.errors import DataError
from raydml.evaluation.scores import Array

Scores = Mapping[int, float]  # of one configuration, by seed
Interval = tuple[float, float]


@dataclass(frozen=True)
class Standing:
    """One configuration: its mean over its own seeds, and how it compares with the best over the seeds of both.

    `difference` is this one's mean less the best's; intervals, `difference` and `p_value` are None where there are too
    few seeds to tell, and so are the last three of the best itself.
    """

    name: str
    rank: int
    mean: float
    interval: Interval | None
    seeds: int
    difference: float | None
    difference_interval: Interval | None
    p_value: float | None
    verdict: Literal["best", "worse", "not significant", "too few seeds"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def leaderboard(
    scores: Mapping[str, Scores], *, maximise: bool = True, confidence: float = 0.95
) -> tuple[Standing, ...]:
    """All configurations, the best mean first; equal ones in order of name.

    `scores[name][seed]` are finite numbers. Equal seeds of two configurations are a pair: the same batches, often the
    same first weights. Two configurations are compared by the t-test of their paired differences (Student, 1908), with
    two seeds or more in common. Because the best is chosen by the very scores that it is tested with, all pairs of
    configurations are one family, not those with the best alone, whose correction would find differences among
    equal ones too often; Holm's correction (Scandinavian Journal of Statistics 6, 1979) keeps the chance of any wrong
    `worse` below 1 - confidence. Intervals are each configuration's own, uncorrected. DataError for no score at all, or
    one that is not finite.
    """
    _check(scores, confidence)
    sign = 1 if maximise else -1
    means = {name: float(np.mean(list(own.values()))) for name, own in scores.items()}
    order = sorted(scores, key=lambda name: (-sign * means[name], name))
    best, adjusted = order[0], _adjusted(scores)
    standings = []
    for rank, name in enumerate(order, start=1):
        own = np.array(list(scores[name].values()))
        interval = _interval(own, confidence) if len(own) > 1 else None
        known = (name, rank, means[name], interval, len(own))
        if name == best:
            standings.append(Standing(*known, None, None, None, "best"))
            continue
        gaps = paired(scores[best], scores[name])
        if len(gaps) < 2:
            standings.append(Standing(*known, None, None, None, "too few seeds"))
            continue
        chance = adjusted[frozenset((best, name))]
        worse = chance < 1 - confidence and sign * float(gaps.mean()) < 0
        verdict: Literal["worse", "not significant"] = "worse" if worse else "not significant"
        standings.append(Standing(*known, float(gaps.mean()), _interval(gaps, confidence), chance, verdict))
    return tuple(standings)


def paired(first: Scores, second: Scores) -> Array:
    """Second less first, float64 (seeds in common,), by ascending seed."""
    return np.array([second[seed] - first[seed] for seed in sorted(first.keys() & second.keys())], dtype=np.float64)


def p_values(gaps: Array) -> Array:
    """(m, n) differences, n > 1 -> (m,): two-sided, of t-tests that a row's mean is 0; 0 or 1 where all are equal."""
    number, deviations = gaps.shape[1], gaps.std(axis=1, ddof=1)
    errors = np.where(deviations == 0, 1.0, deviations / np.sqrt(number))
    chances = 2 * stdtr(number - 1, -abs(gaps.mean(axis=1)) / errors)
    return np.asarray(np.where(deviations == 0, gaps[:, 0] == 0, chances), dtype=np.float64)


def holm(chances: Sequence[float]) -> list[float]:
    """Adjusted p-values in the order given: of the i-th smallest of m the running maximum of (m - i) p, i from 0."""
    adjusted, largest = [1.0] * len(chances), 0.0
    for place, index in enumerate(sorted(range(len(chances)), key=lambda index: chances[index])):
        largest = max(largest, min(1.0, (len(chances) - place) * chances[index]))
        adjusted[index] = largest
    return adjusted


def _adjusted(scores: Mapping[str, Scores]) -> dict[frozenset[str], float]:
    """Of all pairs of configurations that can be compared; those of as many seeds are tested at once."""
    several = [name for name, own in scores.items() if len(own) > 1]
    gaps = {frozenset(pair): paired(scores[pair[0]], scores[pair[1]]) for pair in combinations(several, 2)}
    chances: dict[frozenset[str], float] = {}
    for number in {len(found) for found in gaps.values()} - {0, 1}:
        alike = [pair for pair, found in gaps.items() if len(found) == number]
        chances |= zip(alike, p_values(np.stack([gaps[pair] for pair in alike])).tolist(), strict=True)
    return dict(zip(chances, holm(list(chances.values())), strict=True))


def _interval(values: Array, confidence: float) -> Interval:
    """Of the mean of two values or more, by Student's t."""
    half = float(stdtrit(len(values) - 1, (1 + confidence) / 2) * values.std(ddof=1) / np.sqrt(len(values)))
    return float(values.mean()) - half, float(values.mean()) + half


def _check(scores: Mapping[str, Scores], confidence: float) -> None:
    if not 0 < confidence < 1:
        raise DataError(f"confidence = {confidence} is not between 0 and 1")
    empty = [name for name, own in scores.items() if not own]
    if not scores or empty:
        raise DataError(f"there are no scores of {', '.join(empty) or 'any configuration'}: nothing can be ranked")
    for name, own in scores.items():
        for seed, score in own.items():
            if not np.isfinite(score):
                raise DataError(f"the score of {name} with seed {seed} is {score}: leave out what did not finish")
