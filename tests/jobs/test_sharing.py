"""Shares of CPUs, against what a person would deal by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from raydml.jobs.sharing import Need, share


def need(job: str, fewest: int, most: int, priority: int = 0, cpus: float = 1.0) -> Need:
    return Need(job, priority, fewest, most, cpus)


def test_the_first_in_turn_takes_what_the_others_do_not_need() -> None:
    assert share(8, [], [], [need("a", 1, 4), need("b", 2, 8)]) == {"a": 4, "b": 4}
    assert share(8, [], [], [need("a", 1, 4), need("b", 2, 8, priority=1)]) == {"a": 1, "b": 7}


def test_who_holds_keeps_its_fewest_and_gives_the_rest_to_who_waits() -> None:
    assert share(4, [], [need("a", 1, 4)], [need("b", 3, 4)]) == {"a": 1, "b": 3}
    assert share(4, [], [need("a", 2, 4)], [need("b", 3, 4, priority=9)]) == {"a": 4}


def test_nobody_starts_before_its_turn_unless_the_one_before_can_never_fit() -> None:
    assert share(4, [], [need("a", 2, 2)], [need("b", 3, 3), need("c", 1, 1)]) == {"a": 2}
    assert share(4, [], [need("a", 2, 2)], [need("b", 5, 5), need("c", 1, 1)]) == {"a": 2, "c": 1}


def test_jobs_that_stop_take_their_part() -> None:
    assert share(4, [2.5], [], [need("a", 1, 4)]) == {"a": 1}
    assert share(4, [3.5], [], [need("a", 1, 4)]) == {}


NEEDS = st.builds(
    lambda fewest, more, priority, cpus: (fewest, fewest + more, priority, cpus),
    st.integers(1, 4),
    st.integers(0, 4),
    st.integers(-2, 2),
    st.sampled_from([0.5, 1.0, 2.0]),
)


@given(st.lists(NEEDS, max_size=6), st.integers(0, 6), st.floats(0, 16))
def test_never_more_than_there_is_nor_more_or_less_than_each_may_have(
    drawn: list[tuple[int, int, int, float]], holders: int, cpus: float
) -> None:
    needs = [Need(f"{number}", *fields[2:3], *fields[:2], *fields[3:]) for number, fields in enumerate(drawn)]
    holding, waiting = needs[:holders], needs[holders:]
    dealt = share(cpus, [], holding, waiting)
    by_name = {each.job: each for each in needs}
    assert {each.job for each in holding} <= set(dealt)
    assert all(by_name[job].min <= workers <= by_name[job].max for job, workers in dealt.items())
    used = sum(workers * by_name[job].cpus for job, workers in dealt.items())
    assert used <= max(cpus, sum(each.least for each in holding)) + 1e-9
