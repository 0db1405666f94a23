"""Single decisions of the rules of a study, each of which a child could check by hand."""

from __future__ import annotations

from typing import Any

import pytest

from raydml.tuning.rules import (
    AllToTheEnd,
    Brackets,
    Create,
    Exploit,
    Generations,
    Promote,
    Rule,
    Standing,
    SuccessiveHalving,
    best,
    rule_of,
    rungs,
)
from raydml.tuning.trials import tuned
from tests.unit.studies import study_spec

ASHA = SuccessiveHalving((10, 30, 90), 3)


def at(number: int, target: int, score: float, **changes: bool) -> Standing:
    """One that has reached its target, with the same score at every rung."""
    return Standing(number, target, {rung: score for rung in (10, 30, 90) if rung <= target}, **changes)


def test_asha_promotes_one_of_three_and_no_second_one_before_there_are_six() -> None:
    three = [at(0, 10, 0.1), at(1, 10, 0.3), at(2, 10, 0.2)]
    assert ASHA.decide(three[:2], 9) == Create(10)
    assert ASHA.decide(three, 9) == Promote(1, 30)
    going = [three[0], Standing(1, 30, {10: 0.3}, busy=True), three[2]]
    assert ASHA.decide(going, 9) == Create(10)
    six = [*going, at(3, 10, 0.15), at(4, 10, 0.05), at(5, 10, 0.0)]
    assert ASHA.decide(six, 9) == Promote(2, 30)


def test_asha_looks_at_the_highest_rung_first() -> None:
    above = [at(number, 30, 0.5 + 0.1 * number) for number in range(3)]
    below = [at(number, 10, 0.1) for number in range(3, 12)]
    assert ASHA.decide([*above, *below], 12) == Promote(2, 90)


def test_asha_counts_who_failed_among_those_that_came_to_a_rung_only_if_it_was_to_come_there() -> None:
    pair = [at(0, 10, 0.1), at(1, 10, 0.3)]
    assert ASHA.decide([*pair, Standing(2, 10, {}, failed=True)], 9) == Promote(1, 30)
    pair = [at(0, 30, 0.1), at(1, 30, 0.3)]
    assert ASHA.decide([*pair, Standing(2, 10, {}, failed=True)], 9) == Create(10)


def test_asha_lets_the_last_one_go_on_only_when_nobody_is_busy() -> None:
    leader = at(0, 10, 0.5)
    assert ASHA.decide([leader, Standing(1, 10, {}, busy=True)], 2) == "wait"
    assert ASHA.decide([leader, at(1, 10, 0.4)], 2) == Promote(0, 30)
    assert ASHA.decide([leader, Standing(1, 30, {10: 0.9}, failed=True)], 2) == Promote(0, 30)
    assert ASHA.decide([at(0, 90, 0.5), at(1, 10, 0.4)], 2) == "done"


def test_a_bracket_waits_for_its_whole_rung_but_not_for_who_failed() -> None:
    rule = Brackets((10, 30), 3)
    assert rule.sizes(5) == [3, 2]
    later = [at(3, 30, 0.1), at(4, 30, 0.1)]
    three = [at(0, 10, 0.1), at(1, 10, 0.3)]
    assert rule.decide([*three, Standing(2, 10, {}, busy=True), *later], 5) == "wait"
    assert rule.decide([*three, Standing(2, 10, {}, failed=True), *later], 5) == Promote(1, 30)
    promoted = [three[0], at(1, 30, 0.3), at(2, 10, 0.2)]
    assert rule.decide([*promoted, *later], 5) == "done", "one of three, and who went on counts"
    assert rule.decide(promoted, 5) == Create(30), "the second bracket begins at the second rung"


def test_of_a_bracket_of_two_one_still_goes_on() -> None:
    """Two rungs and a factor of 5 give the first bracket two of three configurations."""
    rule = Brackets((10, 50), 5)
    assert rule.sizes(3) == [2, 1]
    pair = [Standing(0, 10, {10: 0.1}), Standing(1, 10, {10: 0.3}), Standing(2, 50, {50: 0.2}, busy=True)]
    assert rule.decide(pair, 3) == Promote(1, 50)


def test_a_generation_ends_at_the_last_step_and_copies_the_best_share_to_the_worst() -> None:
    rule = Generations(100, 40, 0.25)
    assert rule.decide([], 8) == Create(40) and Generations(30, 40, 0.25).decide([], 8) == Create(30)
    ranked = [Standing(number, 40, {40: -float(number)}) for number in range(8)]
    assert rule.decide(ranked, 8) == Exploit(40, 80, ((7, 0), (6, 1)))
    assert rule.decide([*ranked[:7], Standing(7, 40, {}, busy=True)], 8) == "wait"
    failed = [Standing(0, 40, {40: 9.0}, failed=True), *ranked[1:]]
    assert rule.decide(failed, 8) == Exploit(40, 80, ((7, 1),)), "a quarter of seven is one"
    last = [Standing(number, 80, {80: -float(number)}) for number in range(8)]
    assert rule.decide(last, 8) == Exploit(80, 100, ((7, 0), (6, 1)))
    assert rule.decide([Standing(number, 100, {100: 0.0}) for number in range(8)], 8) == "done"
    assert rule.decide([Standing(0, 40, {}, failed=True)], 1) == "done"
    lone = [Standing(0, 40, {40: 0.1}), Standing(1, 40, {}, failed=True)]
    assert rule.decide(lone, 2) == Exploit(40, 80, ()), "who is alone copies nobody"


def test_of_equal_ones_the_first_is_better_and_who_failed_is_not_ranked() -> None:
    standings = [at(2, 10, 0.5), at(0, 10, 0.5), at(1, 10, 0.7), at(3, 10, 0.9, failed=True), Standing(4, 10, {})]
    assert [each.number for each in best(standings, 10)] == [1, 0, 2]


@pytest.mark.parametrize(
    ("grace", "every", "steps", "expected"),
    [
        (10, 10, 100, (10, 30, 90, 100)),
        (15, 10, 100, (20, 60, 100)),
        (10, 10, 90, (10, 30, 90)),
        (50, 10, 40, (40,)),
        (20, 10, 600, (20, 60, 180, 540, 600)),
    ],
)
def test_rungs_are_evaluations_from_the_first_after_grace_on(
    grace: int, every: int, steps: int, expected: tuple[int, ...]
) -> None:
    assert rungs(grace, 3, every, steps) == expected


def test_a_rule_is_what_the_spec_says() -> None:
    cases: dict[str, tuple[dict[str, Any], Rule]] = {
        "none": ({}, AllToTheEnd(90)),
        "asha": ({"scheduler": {"kind": "asha"}}, SuccessiveHalving((10, 30, 90), 3)),
        "grace": ({"scheduler": {"kind": "asha", "grace": 20, "factor": 2}}, SuccessiveHalving((20, 40, 80, 90), 2)),
        "hyperband": ({"scheduler": {"kind": "hyperband", "grace": 30}}, Brackets((30, 90), 3)),
        "pbt": ({"algorithm": {"kind": "pbt", "every": 30, "share": 0.5}}, Generations(90, 30, 0.5)),
        "every": ({"algorithm": {"kind": "pbt"}}, Generations(90, 10, 0.25)),
    }
    for written, expected in cases.values():
        spec = study_spec(written)
        assert rule_of(spec, tuned(spec)) == expected
