"""Who leads, and whose distance may be chance: against scipy's own t-test, a loop for Holm, and simulated studies."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from raydml.errors import DataError
from raydml.evaluation.leaderboard import holm, leaderboard, p_values

pytestmark = pytest.mark.timeout(60)


def test_a_p_value_is_that_of_a_paired_t_test() -> None:
    random = np.random.default_rng(0)
    for size in (2, 3, 5, 20):
        first, second = random.normal(0.5, 0.1, size), random.normal(0.55, 0.1, size)
        third = random.normal(0.5, 0.1, size)
        found = p_values(np.stack([second - first, third - first, np.zeros(size), np.full(size, 0.25)]))
        expected = [stats.ttest_rel(other, first).pvalue for other in (second, third)]
        assert found == pytest.approx([*expected, 1, 0], rel=1e-10)


def test_holm_multiplies_the_smallest_by_all_the_next_by_one_less_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
    random = np.random.default_rng(1)
    for _ in range(50):
        chances = random.random(random.integers(1, 9)).tolist()
        for level in (0.01, 0.2, 0.6):
            rejected, left = set(), sorted(range(len(chances)), key=chances.__getitem__)
            while left and chances[left[0]] * len(left) <= level:  # the procedure as it is told in words
                rejected.add(left.pop(0))
            assert {i for i, chance in enumerate(holm(chances)) if chance <= level} == rejected


def test_the_best_leads_and_a_clear_and_an_unclear_distance_are_told_apart() -> None:
    luck = {1: 0.03, 2: -0.02, 3: 0.01, 4: -0.04, 5: 0.02}  # of a seed, the same for all
    scores = {
        "clear": {seed: 0.60 + gain + 0.001 * seed for seed, gain in luck.items()},
        "best": {seed: 0.70 + gain for seed, gain in luck.items()},
        "near": {seed: 0.685 + gain * (seed % 2) for seed, gain in luck.items()},
        "once": {1: 0.5},
        "other": {7: 0.4, 8: 0.5, 9: 0.3},
    }
    board = leaderboard(scores)
    assert [(row.rank, row.name, row.verdict) for row in board] == [
        (1, "best", "best"),
        (2, "near", "not significant"),
        (3, "clear", "worse"),
        (4, "once", "too few seeds"),
        (5, "other", "too few seeds"),
    ]
    near, clear = board[1], board[2]
    means = {name: float(np.mean(list(own.values()))) for name, own in scores.items()}
    for row in (near, clear):
        gaps = [scores[row.name][seed] - scores["best"][seed] for seed in luck]
        assert row.difference == pytest.approx(np.mean(gaps)) and row.mean == pytest.approx(means[row.name])
        wanted = stats.t.interval(0.95, 4, np.mean(gaps), stats.sem(gaps))
        assert row.difference_interval == pytest.approx(wanted)
        assert row.interval == pytest.approx(
            stats.t.interval(0.95, 4, row.mean, stats.sem(list(scores[row.name].values())))
        )
    trio = [("best", "clear"), ("best", "near"), ("clear", "near")]
    chances = [stats.ttest_rel(list(scores[a].values()), list(scores[b].values())).pvalue for a, b in trio]
    assert [clear.p_value, near.p_value] == pytest.approx(holm(chances)[:2])
    assert board[3].interval is None and board[3].p_value is None and board[4].interval is not None
    assert clear.to_dict()["verdict"] == "worse"


def test_seconds_are_better_when_fewer() -> None:
    scores = {"slow": {1: 9.0, 2: 9.2, 3: 9.1}, "fast": {1: 3.0, 2: 3.1, 3: 2.9}, "also": {1: 3.1, 2: 2.9, 3: 3.1}}
    board = leaderboard(scores, maximise=False)
    assert [row.name for row in board] == ["fast", "also", "slow"]
    assert [row.verdict for row in board] == ["best", "not significant", "worse"]


def test_only_the_seeds_of_both_are_compared() -> None:
    scores = {"best": {1: 0.9, 2: 0.8, 3: 0.7}, "stopped": {2: 0.5, 3: 0.6, 9: 0.1}}
    row = leaderboard(scores)[1]
    assert row.seeds == 3 and row.difference == pytest.approx((0.5 - 0.8 + 0.6 - 0.7) / 2)


def test_equal_configurations_are_called_worse_in_few_studies_though_the_best_was_picked() -> None:
    random, wrong, naive = np.random.default_rng(2), 0, 0
    for _ in range(400):
        table = random.normal(0, 1, (8, 5)) + random.normal(0, 3, 5)
        board = leaderboard({f"c{row}": dict(enumerate(own)) for row, own in enumerate(table.tolist())})
        wrong += any(row.verdict == "worse" for row in board)
        best = int(board[0].name[1:])
        alone = holm(p_values(np.delete(table, best, axis=0) - table[best]).tolist())
        naive += min(alone) < 0.05
    assert wrong <= 0.05 * 400 + 2 * np.sqrt(400 * 0.05 * 0.95)
    assert naive > 0.08 * 400  # what the pairs with the best alone would have said


def test_a_large_difference_is_found_in_most_studies() -> None:
    random, found = np.random.default_rng(3), 0
    for _ in range(100):
        table = random.normal(0, 1, (4, 5)) + random.normal(0, 3, 5)
        table[0] += 8
        board = leaderboard({f"c{row}": dict(enumerate(own)) for row, own in enumerate(table.tolist())})
        found += board[0].name == "c0" and all(row.verdict == "worse" for row in board[1:])
    assert found > 90


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ({}, "no scores of any configuration"),
        ({"a": {1: 0.5}, "b": {}}, "no scores of b"),
        ({"a": {1: 0.5, 2: float("nan")}}, "score of a with seed 2 is nan"),
        ({"a": {1: float("inf")}}, "is inf"),
    ],
)
def test_what_cannot_be_ranked_is_refused(scores: dict[str, dict[int, float]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        leaderboard(scores)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -2.0])
def test_a_confidence_that_is_no_share_is_refused(confidence: float) -> None:
    with pytest.raises(DataError, match="confidence"):
        leaderboard({"a": {1: 0.5}}, confidence=confidence)
