"""Which extras are started, asked to leave and stopped, and how long a fleet waits before it starts another."""

from __future__ import annotations

import itertools

import pytest

from raydml.training.fleet.staffing import LONGEST_PAUSE, WINDOW, Extra, Leave, Phase, Start, Stop, decide, pause

PHASES: tuple[Phase, ...] = ("pending", "working", "leaving")


def extras(*phases: Phase) -> list[Extra]:
    return [Extra(f"extra-{number}", phase) for number, phase in enumerate(phases)]


def test_missing_extras_are_started_at_once() -> None:
    assert decide(4, 1, 0, extras("working"), True) == [Start(), Start()]
    assert decide(4, 1, 0, extras("working"), False) == [], "a pause holds starts up"


def test_the_newest_go_first_and_those_that_do_not_work_before_those_that_do() -> None:
    four = extras("working", "pending", "working", "pending")
    assert decide(4, 1, 0, four, True) == [Stop("extra-3")]
    assert decide(2, 1, 0, four, True) == [Stop("extra-3"), Stop("extra-1"), Leave("extra-2")]
    assert decide(1, 1, 0, four, False) == [Stop("extra-3"), Stop("extra-1"), Leave("extra-2"), Leave("extra-0")]


def test_a_group_worker_that_is_away_is_replaced_by_an_extra_until_it_is_back() -> None:
    assert decide(2, 2, 1, [], True) == [Start()]
    assert decide(2, 2, 0, extras("working"), True) == [Leave("extra-0")]


def test_for_a_group_worker_whose_node_died_extras_stay_and_none_is_started() -> None:
    assert decide(1, 1, 0, extras("working"), True, gone=1) == [], "it may be all that holds the state"
    assert decide(2, 2, 0, [], True, gone=1) == []
    assert decide(2, 1, 0, [], True, gone=1) == [Start()]
    assert decide(1, 1, 0, extras("working", "working", "pending"), True, gone=1) == [Stop("extra-2"), Leave("extra-1")]


@pytest.mark.parametrize("phases", list(itertools.product(PHASES, repeat=4)))
def test_after_every_decision_the_number_is_right(phases: tuple[Phase, ...]) -> None:
    for wanted, minimum, away in itertools.product(range(1, 7), range(1, 4), range(2)):
        before = extras(*phases)
        decisions = decide(wanted, minimum, away, before, True)
        gone = {decision.name for decision in decisions if not isinstance(decision, Start)}
        started = decisions.count(Start())
        stay = [extra for extra in before if extra.phase != "leaving" and extra.name not in gone]
        assert len(stay) + started == max(0, wanted - minimum) + away
        assert not (gone and started)
        for decision in decisions:
            if not isinstance(decision, Start):
                phase = next(extra.phase for extra in before if extra.name == decision.name)
                assert phase == ("working" if isinstance(decision, Leave) else "pending")


def test_the_pause_doubles_with_every_ending_and_a_quiet_time_ends_it() -> None:
    endings: list[float] = []
    now, waits = 1000.0, []
    for _ in range(9):
        endings.append(now)
        waits.append(pause(endings, now))
        now += waits[-1]
    assert waits[:6] == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0]
    assert waits[6:] == [LONGEST_PAUSE] * 3
    assert pause(endings, now + WINDOW) == 0.0
    assert pause([], 0.0) == 0.0


def test_a_pause_ends_when_its_time_is_over() -> None:
    assert pause([10.0, 20.0, 30.0], 31.5) == 0.5
    assert pause([10.0, 20.0, 30.0], 32.5) == 0.0
