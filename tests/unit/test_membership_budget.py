"""Budgets of a run: how many workers it may lose, by rate and by kind, and when a batch is to blame."""

from __future__ import annotations

from raydml.membership.budget import Budget, Limits, Poisoned, Spent, Within

HOUR = 3600.0


def test_a_worker_may_be_lost_every_ten_minutes_for_days() -> None:
    budget = Budget(Limits(death=6))
    for count in range(6 * 24 * 3):
        assert isinstance(budget.died((f"w{count}",), count, 600.0 * count), Within)


def test_one_loss_more_than_allowed_within_the_window_spends_the_budget_until_the_oldest_is_forgotten() -> None:
    budget = Budget(Limits(death=2))
    assert budget.died(("a",), 1, 0.0) == Within(1)
    assert budget.died(("b",), 2, 10.0) == Within(0)
    assert budget.died(("c",), 3, 20.0) == Spent("death", 3, 2, HOUR - 20.0)
    assert budget.died(("d",), 4, HOUR + 10.0) == Within(0)


def test_planned_leavings_have_a_budget_of_their_own() -> None:
    budget = Budget(Limits(death=1, leaving=2))
    assert budget.left("a", 0.0) == Within(1)
    assert budget.left("b", 0.0) == Within(0)
    assert budget.died(("c",), 1, 0.0) == Within(0)
    assert budget.left("d", 0.0) == Spent("leaving", 3, 2, HOUR)


def test_resizes_have_a_budget_of_their_own() -> None:
    budget = Budget(Limits(death=1, leaving=0, resize=2))
    assert [budget.resized(0.0), budget.resized(10.0)] == [Within(1), Within(0)]
    assert budget.died(("c",), 1, 10.0) == Within(0)
    assert budget.resized(20.0) == Spent("resize", 3, 2, HOUR - 20.0)


def test_leavings_without_a_limit_never_end_the_run() -> None:
    budget = Budget(Limits(leaving=None))
    assert {budget.left(f"w{count}", float(count)) for count in range(1000)} == {Within(None)}


def test_a_step_that_kills_three_workers_is_poisoned_and_names_them() -> None:
    budget = Budget(Limits(poison=3))
    assert isinstance(budget.died(("a",), 7, 0.0), Within)
    assert isinstance(budget.died(("b",), 7, 1.0), Within)
    assert budget.died(("c",), 7, 2.0) == Poisoned(7, ("a", "b", "c"))


def test_a_death_that_is_told_twice_counts_once_against_its_step() -> None:
    budget = Budget(Limits(poison=2))
    assert isinstance(budget.died(("a",), 7, 0.0), Within)
    assert isinstance(budget.died(("a",), 7, 1.0), Within)


def test_deaths_at_a_step_that_was_passed_since_are_forgotten() -> None:
    budget = Budget(Limits(poison=2))
    assert isinstance(budget.died(("a",), 7, 0.0), Within)
    assert isinstance(budget.died(("b",), 8, 1.0), Within)
    assert isinstance(budget.died(("c",), 7, 2.0), Within)  # gone back to a checkpoint meanwhile


def test_a_node_that_takes_three_workers_with_it_is_no_poison() -> None:
    budget = Budget(Limits(death=10, poison=2))
    assert budget.died(("a", "b", "c"), 7, 0.0) == Within(7)
    assert budget.died(("d",), 7, 1.0) == Poisoned(7, ("a", "d"))
