"""Differences between models: against loops that draw the same resamples, and how often intervals hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from raydml.errors import DataError
from raydml.evaluation.paired import Resampling, differences, differences_over_seeds
from raydml.evaluation.scores import Array

pytestmark = pytest.mark.timeout(60)


def drawn(seed: int, number: int = 40) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    values = {"map_at_r": random.random(number), "precision_at_1": (random.random(number) < 0.6).astype(float)}
    for value in values.values():
        value[7] = np.nan
    return values


def test_the_interval_is_that_of_a_loop_over_resamples_of_the_same_queries() -> None:
    before, after = drawn(0), drawn(1)
    found = differences(before, after, Resampling(confidence=0.9, repeats=300, seed=5))
    again = np.random.default_rng(5)
    kept = [row for row in range(40) if row != 7]
    gained: dict[str, list[float]] = {name: [] for name in before}
    for _ in range(300):
        rows = [kept[place] for place in again.integers(0, 39, 39)]
        for name in before:
            gained[name].append(
                sum(after[name][row] for row in rows) / 39 - sum(before[name][row] for row in rows) / 39
            )
    for name, one in found.items():
        assert (one.low, one.high) == pytest.approx(np.quantile(gained[name], [0.05, 0.95]), abs=1e-12)
        assert one.before == pytest.approx(np.nanmean(before[name])) and one.after == pytest.approx(
            np.nanmean(after[name])
        )
        assert one.gained == pytest.approx(one.after - one.before)


def test_whole_classes_are_drawn_where_they_are_given() -> None:
    before, after = drawn(2), drawn(3)
    classes = np.arange(40) // 8
    found = differences(before, after, Resampling(confidence=0.8, repeats=200, seed=6, classes=classes))
    again, gained = np.random.default_rng(6), []
    for _ in range(200):
        rows = [row for one in again.integers(0, 5, 5) for row in range(40) if row // 8 == one and row != 7]
        gained.append(sum(after["map_at_r"][row] - before["map_at_r"][row] for row in rows) / len(rows))
    assert (found["map_at_r"].low, found["map_at_r"].high) == pytest.approx(np.quantile(gained, [0.1, 0.9]), abs=1e-12)


def test_equal_models_have_no_difference_and_the_seed_decides() -> None:
    one = differences(drawn(4), drawn(4), Resampling())["map_at_r"]
    assert (one.low, one.high, one.gained, one.significant) == (0, 0, 0, False)
    first, second, other = (
        differences(drawn(4), drawn(5), Resampling(seed=seed, repeats=100))["map_at_r"] for seed in (1, 1, 2)
    )
    assert first == second != other


def test_pairs_find_what_two_intervals_apart_do_not() -> None:
    random = np.random.default_rng(8)
    hard = random.random(500)  # of a query, for any model
    before, after = {"map_at_r": hard}, {"map_at_r": hard + random.normal(0.01, 0.02, 500)}
    found = differences(before, after, Resampling())["map_at_r"]
    assert found.significant and found.high - found.low < 0.01
    apart = 2 * 1.96 * np.sqrt(hard.var() / 500 * 2)
    assert apart > 0.05


@pytest.mark.parametrize("over", ["queries", "classes"])
def test_intervals_hold_a_known_difference_as_often_as_they_say(over: str) -> None:
    random, held, rounds = np.random.default_rng(9), 0, 400
    classes = np.arange(300) // 5
    for _ in range(rounds):
        hard = random.normal(0, 1, 300)
        luck = random.normal(0, 0.3, 60)[classes] if over == "classes" else 0.0
        gain = 0.1 + luck + random.normal(0, 0.3, 300)
        how = Resampling(0.9, 200, int(random.integers(2**31)), classes if over == "classes" else None)
        found = differences({"m": hard}, {"m": hard + gain}, how)["m"]
        held += found.low <= 0.1 <= found.high
    assert held / rounds == pytest.approx(0.9, abs=0.045)  # three standard deviations of 400 rounds


def seeds(random: np.random.Generator, number: int, queries: int, gain: float) -> tuple[list, list]:
    """Scores of `number` seeds before and after: what a query, a seed, and both together do by chance."""
    hard, better = random.normal(0, 1, queries), random.normal(gain, 0.3, queries)
    before, after = [], []
    for _ in range(number):
        luck = random.normal(0, 0.5)  # of the seed, for both
        before.append({"m": hard + luck + random.normal(0, 0.2, queries)})
        after.append({"m": hard + luck + better + random.normal(0, 0.1) + random.normal(0, 0.2, queries)})
    return before, after


@pytest.mark.parametrize(("number", "paired"), [(2, True), (3, True), (10, True), (3, False), (8, False)])
def test_intervals_over_seeds_hold_a_known_difference_as_often_as_they_say(number: int, paired: bool) -> None:
    random, held, rounds = np.random.default_rng(number), 0, 300
    for _ in range(rounds):
        before, after = seeds(random, number, 100, gain=0.2)
        if not paired:  # other seeds on the other side
            after = [{"m": values["m"] + random.normal(0, 0.5)} for values in after]
        how = Resampling(0.9, 100, int(random.integers(2**31)))
        found = differences_over_seeds(before, after, how, paired=paired)["m"]
        held += found.low <= 0.2 <= found.high
    assert held / rounds >= 0.9 - 0.052  # three standard deviations of 300 rounds; a little wide is allowed


def test_a_percentile_bootstrap_of_three_seeds_would_be_too_narrow() -> None:
    random, held, rounds = np.random.default_rng(11), 0, 300
    for _ in range(rounds):
        before, after = seeds(random, 3, 100, gain=0.2)
        means = np.array([(b["m"].mean(), a["m"].mean()) for b, a in zip(before, after, strict=True)])
        gaps = means[:, 1] - means[:, 0]
        low, high = np.quantile(gaps[random.integers(0, 3, (200, 3))].mean(axis=1), [0.05, 0.95])
        held += low <= 0.2 <= high
    assert held / rounds < 0.8


def test_without_chance_in_queries_it_is_the_t_test_of_the_seeds() -> None:
    gains = [0.1, 0.3, 0.2, 0.15]
    flat = np.linspace(0, 1, 50)
    before = [{"m": flat + luck} for luck in (0.0, 0.5, -0.2, 0.1)]
    after = [{"m": values["m"] + gain} for values, gain in zip(before, gains, strict=True)]
    found = differences_over_seeds(before, after, Resampling(), paired=True)["m"]
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 3, np.mean(gains), stats.sem(gains)))
    apart = differences_over_seeds(before, after, Resampling(), paired=False)["m"]
    sides = [[values["m"].mean() for values in side] for side in (before, after)]
    low, high = stats.ttest_ind(sides[1], sides[0], equal_var=False).confidence_interval(0.95)
    assert (apart.low, apart.high) == pytest.approx((low, high))  # Welch's
    assert found.significant and not apart.significant


def test_a_single_seed_on_a_side_is_refused() -> None:
    with pytest.raises(DataError, match="1 seeds before and 2 after"):
        differences_over_seeds([drawn(0)], [drawn(1), drawn(2)], Resampling(), paired=False)
