"""Bootstrap intervals against a loop that draws the same resamples, and against the normal approximation."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from raydml.errors import DataError
from raydml.evaluation import intervals

pytestmark = pytest.mark.timeout(30)


def test_intervals_are_those_of_a_loop_over_resamples_of_the_queries() -> None:
    random = np.random.default_rng(0)
    values = {"a": random.random(30), "b": (random.random(30) < 0.4).astype(float)}
    values["a"][5] = values["b"][5] = np.nan
    found = intervals(values, confidence=0.9, repeats=200, seed=3)
    again = np.random.default_rng(3)
    means: dict[str, list[float]] = {"a": [], "b": []}
    for _ in range(200):
        rows = again.integers(0, 29, 29)
        for name, value in values.items():
            kept = [v for v in value if not np.isnan(v)]
            means[name].append(sum(kept[row] for row in rows) / 29)
    for name in values:
        assert found[name] == pytest.approx(np.quantile(means[name], [0.05, 0.95]), abs=1e-12)


def test_intervals_are_those_of_a_loop_over_resamples_of_the_classes() -> None:
    random = np.random.default_rng(1)
    classes = np.array([7] * 5 + [-2] * 1 + [2**60] * 9 + [3] * 4 + [4] * 2)
    values = {"a": random.random(21)}
    values["a"][0] = np.nan
    found = intervals(values, confidence=0.8, repeats=100, seed=4, classes=classes)
    again, means = np.random.default_rng(4), []
    for _ in range(100):
        pool: list[float] = []
        for drawn in again.integers(0, 5, 5):
            wanted = [-2, 3, 4, 7, 2**60][drawn]
            rows = zip(values["a"], classes, strict=True)
            pool += [v for v, label in rows if label == wanted and not np.isnan(v)]
        means.append(sum(pool) / len(pool))
    assert found["a"] == pytest.approx(np.quantile(means, [0.1, 0.9]), abs=1e-12)


@pytest.mark.parametrize(("share", "confidence", "deviations"), [(0.3, 0.95, 1.960), (0.9, 0.8, 1.2816)])
def test_the_width_for_a_proportion_is_that_of_the_normal_approximation(
    share: float, confidence: float, deviations: float
) -> None:
    values = {"precision_at_1": (np.arange(4000) < share * 4000).astype(float)}
    low, high = intervals(values, confidence=confidence, repeats=2000, seed=5)["precision_at_1"]
    expected = 2 * deviations * np.sqrt(share * (1 - share) / 4000)
    assert high - low == pytest.approx(expected, rel=0.08)
    assert (low + high) / 2 == pytest.approx(share, abs=expected / 10)


def test_queries_that_agree_within_classes_widen_the_interval_over_classes() -> None:
    classes = np.arange(100).repeat(25)
    values = {"precision_at_1": (classes % 2).astype(float)}
    one, whole = (
        intervals(values, confidence=0.95, repeats=1000, seed=6, classes=chosen)["precision_at_1"]
        for chosen in (None, classes)
    )
    assert whole[1] - whole[0] == pytest.approx(5 * (one[1] - one[0]), rel=0.15)  # 5 = square root of 25


def test_the_seed_decides() -> None:
    values = {"a": np.random.default_rng(7).random(50)}
    first, second, other = (intervals(values, confidence=0.9, repeats=50, seed=seed) for seed in (1, 1, 2))
    assert first == second != other


def test_memory_is_far_below_all_resamples() -> None:
    values = {"a": np.random.default_rng(8).random(20_000)}
    tracemalloc.start()
    intervals(values, confidence=0.95, repeats=500, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000 * 8 * 12


def test_nothing_measured_is_refused() -> None:
    with pytest.raises(DataError, match="none of 3 queries"):
        intervals({"a": np.full(3, np.nan)}, confidence=0.9, repeats=10, seed=0)
