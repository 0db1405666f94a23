"""Members, their authority and its ledger, one message at a time on a clock that the test moves."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from raydml.errors import CheckpointError, RunError, RunExists, StaleView
from raydml.membership import Authority, Beat, FileLedger, Ledger, Member, MemoryLedger, Policy, Record, Report, deal
from raydml.membership import share as equal_share
from raydml.membership.messages import View

POLICY = Policy(first=2, most=4, num_slices=8, beat_timeout=4.0, grace=0.25, lease=3.0)


def member_at(step: int | None, *, name: str = "a", epoch: int = 1, prepared: bool = False) -> Member:
    return Member(name, run="run", epoch=epoch, step=step, prepared=prepared, digest=f"after {step}")


def view_at(step: int, *, epoch: int = 2, source: str | None = "b", run: str = "run") -> View:
    return View(run, epoch, ("a", "b"), (4, 4), step, source)


class Table:
    """An authority with its members around it; every message arrives at once."""

    def __init__(self, policy: Policy = POLICY, ledger: Ledger | None = None, durable: int = 0) -> None:
        self.ledger, self.policy, self.durable = ledger or MemoryLedger(), policy, durable
        self.members: dict[str, Member] = {}
        self.now = 100.0
        self.restart()

    def restart(self) -> None:
        """A new authority takes over."""
        self.authority = Authority("run", self.ledger, self.policy, self.now, lambda: self.durable, wall=1e9)

    def come(self, *names: str, **speeds: float) -> View | None:
        """Members report, new ones as joiners; the view that closes with the last of them."""
        for name in names:
            member = self.members.setdefault(name, Member(name))
            self.authority.report(member.report(speeds.get(name, 0.0)), self.now)
        view = self.authority.tick(self.now)
        for name in view.members if view else ():
            member = self.members[name]
            action = member.adopt(view)
            if action == "roll_forward":
                member.commit(f"after {view.step}")
            elif action != "keep":
                member.hold(view.step, f"after {view.step}")
        return view

    def train(self, *names: str, steps: int = 1) -> None:
        """These commit some steps."""
        for name in names:
            member = self.members[name]
            for _ in range(steps):
                assert member.step is not None
                member.prepare()
                member.commit(f"after {member.step + 1}")

    def standing(self, name: str, speed: float = 0.0) -> str:
        """What a beat of this member is answered with."""
        member = self.members.setdefault(name, Member(name))
        return self.authority.beat(Beat(name, member.epoch, member.step or 0, speed), self.now).standing

    def wait(self, seconds: float, *beating: str) -> View | None:
        """Time passes in quarters of a second, in which only these beat; the first view that closes."""
        end = self.now + seconds
        while self.now < end:
            self.now += 0.25
            for name in beating:
                self.standing(name)
            if view := self.authority.tick(self.now):
                return view
        return None

    @property
    def causes(self) -> list[tuple[str, tuple[str, ...]]]:
        return [(event.cause, event.members) for event in self.authority.events]


# Member


def test_a_member_at_the_views_step_keeps_its_state_and_drops_the_gradients_of_a_discarded_step() -> None:
    member = member_at(5, prepared=True)
    assert member.adopt(view_at(5)) == "keep"
    assert (member.epoch, member.step, member.prepared) == (2, 5, False)


def test_a_member_prepared_for_the_views_step_rolls_forward() -> None:
    member = member_at(4, prepared=True)
    assert member.adopt(view_at(5)) == "roll_forward"
    member.commit("after 5")
    assert (member.step, member.digest, member.prepared) == (5, "after 5", False)


@pytest.mark.parametrize("member", [member_at(None), member_at(3), member_at(4), member_at(3, prepared=True)])
def test_a_member_without_the_views_state_is_given_it_and_keeps_the_old_one_until_it_is_whole(member: Member) -> None:
    before = member.step
    assert member.adopt(view_at(5)) == "receive"
    assert member.step == before
    member.hold(5, "after 5")
    assert (member.step, member.digest, member.prepared) == (5, "after 5", False)


def test_without_a_source_the_checkpoint_is_loaded() -> None:
    for member in (member_at(None, epoch=0), member_at(4, prepared=True), member_at(5), member_at(9, prepared=True)):
        assert member.adopt(view_at(5, source=None)) == "restore"
        assert not member.prepared


@pytest.mark.parametrize(
    "member",
    [member_at(5, epoch=2), member_at(5, epoch=3), member_at(6), member_at(5, name="c")],
    ids=["same epoch", "older epoch", "behind the member", "without the member"],
)
def test_a_view_that_no_longer_holds_is_refused_and_changes_nothing(member: Member) -> None:
    before = replace(member)
    with pytest.raises(StaleView, match="come for a new view"):
        member.adopt(view_at(5))
    assert member == before


def test_a_view_of_another_run_is_refused() -> None:
    with pytest.raises(RunError, match="the view is of run other"):
        member_at(5).adopt(view_at(5, run="other"))


def test_a_lease_is_extended_by_later_pulses_and_never_cut_by_earlier_ones() -> None:
    member = Member("a")
    assert not member.may_commit(0.0)
    member.granted(3.0)
    member.granted(2.0)
    assert member.may_commit(2.9)
    assert not member.may_commit(3.0)


# Authority: the group


def test_the_first_view_closes_when_the_first_number_of_workers_has_come() -> None:
    table = Table()
    assert table.come("b") is None
    assert table.standing("b") == "wait"
    assert table.come("a") == View("run", 1, ("a", "b"), (4, 4), 0, None)
    assert table.standing("a") == "go"
    (event,) = table.authority.events
    assert (event.cause, event.before, event.after, event.time) == ("start", 0, 2, 1e9 + 100.0)


def test_a_repeated_report_is_answered_with_the_view_and_changes_nothing() -> None:
    table = Table()
    table.come("a")
    view = table.come("b")
    assert table.authority.report(Report("a"), 101.0) is view
    assert table.authority.tick(101.0) is None
    assert table.standing("b") == "go"


def test_a_member_that_is_slow_for_an_hour_is_not_dead_while_it_beats() -> None:
    table = Table()
    table.come("a", "b")
    assert table.wait(3600.0, "a", "b") is None
    table.come("a")  # its collective broke
    assert table.standing("b") == "broken"
    assert table.wait(600.0, "a", "b") is None


def test_a_joiner_comes_in_at_a_boundary_behind_the_older_members_and_is_given_the_state() -> None:
    table = Table()
    table.come("b", "c")
    table.train("b", "c", steps=3)
    table.come("a")
    assert (table.standing("b"), table.standing("c"), table.standing("a")) == ("change", "change", "wait")
    table.come("b")
    assert table.standing("c") == "change"  # within the grace of a boundary
    view = table.come("c")
    assert view == View("run", 2, ("b", "c", "a"), (2, 3, 3), 3, "b")
    assert table.causes[1:] == [("join", ("a",))]
    assert {member.digest for member in table.members.values()} == {"after 3"}


def test_a_boundary_that_takes_longer_than_the_grace_is_broken_off() -> None:
    table = Table()
    table.come("a", "b")
    table.come("c")
    table.come("a")
    table.now += 0.3
    assert table.standing("b") == "broken"


def test_a_group_whose_connections_broke_meets_anew_and_nobody_is_called_lost() -> None:
    table = Table()
    table.come("a", "b")
    table.train("a", "b")
    assert table.come("b") is None
    assert table.standing("a") == "broken"
    view = table.come("a")
    assert view is not None and view.members == ("a", "b") and view.step == 1
    assert table.causes[1:] == [("broken", ())]


def test_a_proven_death_closes_the_view_with_the_last_survivors_report() -> None:
    table = Table()
    table.come("a", "b", "c", "d")
    table.authority.dead("b", table.now)
    assert [table.standing(name) for name in "acd"] == ["broken"] * 3
    assert table.come("a", "c") is None
    table.now += 0.125
    view = table.come("d")
    assert view is not None and view.members == ("a", "c", "d")
    event = table.authority.events[-1]
    assert (event.cause, event.members, event.before, event.after, event.down) == ("death", ("b",), 4, 3, 0.125)


def test_a_connection_that_comes_back_within_the_grace_changes_nothing() -> None:
    table = Table()
    table.come("a", "b")
    table.authority.disconnected("a", table.now)
    table.now += 0.2
    assert (table.standing("b"), table.standing("a")) == ("go", "go")
    table.now += 1.0
    assert table.standing("b") == "go"


def test_a_member_whose_connection_stays_away_is_lost_and_told_to_be_gone_when_it_comes_back() -> None:
    table = Table()
    table.come("a", "b")
    table.authority.disconnected("a", table.now)
    table.now += 0.3
    assert table.standing("b") == "broken"
    view = table.come("b")
    assert view is not None and view.members == ("b",)
    assert table.standing("a") == "gone"
    assert table.come("a") is None
    assert table.causes[1:] == [("lost", ("a",)), ("fenced", ("a",))]


def test_a_member_that_cannot_be_heard_is_fenced_after_the_beat_timeout() -> None:
    table = Table()
    table.come("a", "b")
    assert table.wait(4.0, "b") is None
    assert table.standing("b") == "go"
    table.wait(0.25, "b")
    assert table.standing("b") == "broken"
    view = table.come("b")
    assert view is not None and view.members == ("b",)


def test_an_authority_that_was_suspended_evicts_nobody() -> None:
    table = Table()
    table.come("a", "b", "c")
    table.now += 60.0
    assert table.come("a") is None
    assert (table.standing("b"), table.standing("c")) == ("broken", "broken")
    view = table.come("b", "c")
    assert view is not None and view.members == ("a", "b", "c")


# Authority: the step


@pytest.mark.parametrize("stepped", ["a", "b", "c"])
def test_if_anyone_stepped_all_who_are_prepared_roll_forward(stepped: str) -> None:
    table = Table()
    table.come("a", "b", "c")
    for member in table.members.values():
        member.prepare()
    table.members[stepped].commit("after 1")
    view = table.come("a", "b", "c")
    assert view is not None and (view.step, view.source) == (1, stepped)
    assert {(member.step, member.digest) for member in table.members.values()} == {(1, "after 1")}


def test_if_nobody_stepped_the_step_is_discarded() -> None:
    table = Table()
    table.come("a", "b")
    table.members["a"].prepare()
    view = table.come("a", "b")
    assert view is not None and (view.step, view.source) == (0, "a")
    assert not table.members["a"].prepared


def test_a_step_of_a_member_that_was_left_behind_does_not_count() -> None:
    table = Table()
    table.come("a", "b")
    table.members["b"].prepare()
    table.train("a")
    table.authority.disconnected("a", table.now)
    table.now += 0.3
    view = table.come("b")
    assert view is not None and (view.members, view.step) == (("b",), 0)
    assert table.come("a") is None
    assert table.wait(60.0, "a", "b") is None


def test_two_states_of_one_step_fail_the_run_and_are_named() -> None:
    table = Table()
    table.come("a", "b")
    table.train("a", "b")
    table.members["b"].digest = "something else"
    assert table.come("a", "b") is None
    assert table.standing("a") == "over"
    assert table.authority.failure is not None and table.authority.failure["message"] == (
        "members hold different states of step 1: {'a': 'after 1', 'b': 'something else'}; this must never happen"
    )


def test_when_nobody_holds_a_state_the_run_goes_back_to_the_checkpoint_and_says_what_is_lost() -> None:
    table = Table(durable=3)
    table.come("a", "b")
    table.train("a", "b", steps=5)
    table.standing("a")
    table.authority.dead("a", table.now)
    table.authority.dead("b", table.now)
    view = table.come("c")
    assert view == View("run", 2, ("c",), (8,), 3, None)
    event = table.authority.events[-3]
    assert (event.cause, event.step, event.lost) == ("restart", 3, 5)


def test_going_back_waits_until_every_lease_has_run_out() -> None:
    table = Table()
    table.come("a", "b")
    table.authority.disconnected("a", table.now)
    table.wait(0.5, "b")
    assert table.come("b") is not None
    table.authority.dead("b", table.now)
    assert table.come("c") is None  # a may still hold a lease
    began = table.now
    assert table.wait(10.0, "c") is not None
    assert began + 3.0 < table.now < 100.0 + POLICY.beat_timeout + 0.5


SHARDED = replace(POLICY, state="sharded")


def test_with_parts_a_death_sends_all_back_to_the_checkpoint_and_the_survivors_stay() -> None:
    table = Table(SHARDED, durable=3)
    table.come("a", "b")
    assert table.members["a"].step == 3
    table.train("a", "b", steps=5)
    table.standing("a")
    table.authority.dead("b", table.now)
    assert table.come("a") == View("run", 2, ("a",), (8,), 3, None)
    assert table.members["a"].step == 3, "what it held does not count"
    restart, death = table.authority.events[-2:]
    assert (restart.cause, restart.members, restart.lost) == ("restart", ("a",), 5)
    assert (death.cause, death.members, death.lost) == ("death", ("b",), 0)


def test_with_parts_nobody_goes_back_while_a_missing_one_may_let_a_checkpoint_appear() -> None:
    table = Table(SHARDED)
    table.come("a", "b")
    table.train("a", "b", steps=5)
    table.authority.disconnected("a", table.now)
    table.wait(0.5, "b")
    assert table.come("b") is None
    began, table.durable = table.now, 5  # it does
    view = table.wait(10.0, "b")
    assert view is not None and (view.step, view.members) == (5, ("b",))
    assert began + 3.0 < table.now < 100.0 + POLICY.beat_timeout + 0.5


def test_with_parts_planned_changes_follow_each_other_at_once_from_a_checkpoint_of_their_step() -> None:
    table = Table(replace(SHARDED, first=3))
    table.come("a", "b", "c")
    for step, size in ((2, 2), (4, 1)):
        names = table.authority.view.members if table.authority.view else ()
        table.authority.resize(size, table.now)
        table.train(*names, steps=2)
        assert table.authority.tick(table.now) is None and table.standing(names[0]) == "change"
        table.durable = step
        view = table.come(*names)
        assert view is not None and (view.size, view.step, view.source) == (size, step, None)
    assert [(event.cause, event.lost) for event in table.authority.events] == [
        ("start", 0),
        ("resize", 0),
        ("resize", 0),
    ]


# Authority: what the run asks for


def test_a_smaller_size_sends_the_youngest_away_and_a_larger_one_lets_the_waiting_in() -> None:
    table = Table()
    table.come("a", "b")
    table.come("c")
    table.come("a", "b")
    table.authority.resize(2, table.now)
    assert table.standing("a") == "change"
    view = table.come("a", "b", "c")
    assert view is not None and view.members == ("a", "b")
    assert table.standing("c") == "gone"
    table.come("d")
    assert (table.standing("a"), table.standing("d")) == ("go", "wait")
    table.authority.resize(3, table.now)
    table.authority.tick(table.now)
    assert table.standing("a") == "change"
    view = table.come("a", "b")
    assert view is not None and view.members == ("a", "b", "d")
    assert table.causes[1:] == [("join", ("c",)), ("resize", ("c",)), ("join", ("d",))]


def test_a_run_resized_below_its_first_number_starts_with_the_smaller_one() -> None:
    table = Table()
    table.authority.resize(1, table.now)
    view = table.come("a")
    assert view is not None and view.members == ("a",)


def test_a_drained_member_leaves_at_the_next_boundary() -> None:
    table = Table()
    table.come("a", "b")
    table.train("a", "b")
    table.authority.drain(("a",), table.now)
    table.authority.tick(table.now)
    assert table.standing("b") == "change"
    view = table.come("a", "b")
    assert view == View("run", 2, ("b",), (8,), 1, "b")
    assert table.standing("a") == "gone"
    assert table.causes[1:] == [("drain", ("a",))]


def test_the_last_holder_of_the_state_leaves_only_when_another_has_been_given_it() -> None:
    table = Table(replace(POLICY, first=1))
    table.come("a")
    table.train("a")
    table.authority.drain(("a",), table.now)
    table.authority.tick(table.now)
    assert table.standing("a") == "go"
    table.come("b")
    assert table.standing("a") == "change"
    view = table.come("a")
    assert view is not None and (view.members, view.source) == (("a", "b"), "a")
    table.authority.tick(table.now)
    assert table.standing("b") == "change"
    view = table.come("a", "b")
    assert view is not None and (view.members, view.source) == (("b",), "b")


def test_slices_are_dealt_by_measured_speed_where_the_policy_says_so() -> None:
    table = Table(replace(POLICY, balance="measured"))
    view = table.come("a", "b", a=3.0, b=1.0)
    assert view is not None and view.deal == (6, 2)


def test_a_straggler_is_named_once_and_slices_are_dealt_anew_when_speeds_have_drifted() -> None:
    table = Table(replace(POLICY, first=3, balance="measured", hold=2.0))
    view = table.come("a", "b", "c")
    assert view is not None and view.deal == (2, 3, 3)
    for _ in range(12):
        table.now += 0.25
        for name, speed in {"a": 10.0, "b": 10.0, "c": 2.0}.items():
            table.standing(name, speed)
        assert table.authority.tick(table.now) is None
    assert {table.standing(name) for name in "abc"} == {"change"}
    table.train("a", "b", "c")
    view = table.come("a", "b", "c", a=10.0, b=10.0, c=2.0)
    assert view is not None and view.deal == (4, 3, 1) and view.members == ("a", "b", "c") and view.step == 1
    straggler, balance = table.authority.events[1:]
    assert (straggler.cause, straggler.members) == ("straggler", ("c",))
    assert straggler.note == "2 slices a second, the others 10"
    assert (balance.cause, balance.before, balance.after, balance.lost) == ("balance", 3, 3, 0)


def test_equal_dealing_names_a_straggler_and_lets_the_slices_be() -> None:
    table = Table(replace(POLICY, hold=1.0))
    table.come("a", "b")
    for _ in range(20):
        table.now += 0.25
        standings = {table.standing("a", 10.0), table.standing("b", 1.0)}
        assert standings == {"go"} and table.authority.tick(table.now) is None
    assert table.causes == [("start", ("a", "b")), ("straggler", ("b",))]


def test_a_run_without_a_whole_checkpoint_ends_instead_of_beginning_anew() -> None:
    def durable_step() -> int:
        raise CheckpointError("all are damaged")

    authority = Authority("run", MemoryLedger(), replace(POLICY, first=1), 0.0, durable_step)
    authority.report(Report("a"), 0.0)
    assert authority.tick(0.0) is None
    assert authority.over and authority.failure == {"kind": "CheckpointError", "message": "all are damaged"}


def test_a_run_that_is_over_says_so_to_everybody() -> None:
    table = Table()
    table.come("a", "b")
    table.authority.finish(table.now)
    assert (table.standing("a"), table.standing("stranger")) == ("over", "over")
    assert table.authority.tick(table.now) is None


# Authority: its successor


def test_a_restarted_authority_raises_the_epoch_at_a_boundary_and_loses_no_step() -> None:
    table = Table()
    table.come("a", "b")
    table.train("a", "b", steps=2)
    table.restart()
    assert (table.standing("a"), table.standing("b")) == ("change", "change")
    view = table.come("a", "b")
    assert view == View("run", 2, ("a", "b"), (4, 4), 2, "a")
    assert table.causes == [("resume", ("a", "b"))]


def test_an_epoch_that_was_written_and_never_handed_out_is_not_used_again() -> None:
    table = Table()
    for name in ("a", "b"):
        table.authority.report(Report(name), table.now)
    assert table.authority.tick(table.now) is not None  # nobody hears of it
    table.restart()
    view = table.come("a", "b")
    assert view is not None and view.epoch == 2


def test_a_restarted_authority_waits_for_old_members_until_their_leases_are_over() -> None:
    table = Table()
    table.come("a", "b")
    table.restart()
    began = table.now
    assert table.come("c", "d") is None
    view = table.wait(10.0, "c", "d")
    assert view is not None and view.members == ("c", "d")
    assert table.now - began > POLICY.beat_timeout


def test_an_authority_that_was_replaced_closes_no_view_grants_no_lease_and_ends_no_run() -> None:
    table = Table()
    table.come("a", "b")
    old = table.authority
    table.restart()
    assert old.beat(Beat("a", 1, 0), table.now).lease == 0.0
    assert old.deposed
    old.finish(table.now)
    assert not old.over


def test_an_authority_learns_at_its_next_view_that_it_was_replaced() -> None:
    table = Table()
    old = table.authority
    for name in ("a", "b"):
        old.report(Report(name), table.now)
    table.restart()
    assert old.tick(table.now) is None
    assert old.deposed and old.view is None


# Ledger


@pytest.fixture(params=["memory", "file"])
def ledgers(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Ledger]:
    """Gives the ledger of one run to each process that asks."""
    memory = MemoryLedger()
    return lambda: memory if request.param == "memory" else FileLedger(tmp_path / "run" / "membership.json")


def test_a_ledger_gives_the_next_authority_what_the_last_one_wrote(ledgers: Callable[[], Ledger]) -> None:
    assert ledgers().take() == Record(token=1)
    record = Record(4, 17, (("a", 1), ("b", 3)), 1)
    ledgers().write(record)
    assert ledgers().take() == replace(record, token=2)


def test_a_ledger_refuses_an_authority_that_was_replaced(ledgers: Callable[[], Ledger]) -> None:
    first = ledgers().take()
    second = ledgers().take()
    assert not ledgers().holds(first.token)
    assert ledgers().holds(second.token)
    with pytest.raises(RunExists, match="authority 1 of this run was replaced by authority 2"):
        ledgers().write(replace(first, epoch=9))
    assert ledgers().take().epoch == 0


# Shares by speed


@pytest.mark.parametrize("num_slices", range(1, 18))
def test_equal_or_unknown_speeds_give_equal_shares(num_slices: int) -> None:
    for size in range(1, num_slices + 1):
        equal = tuple(len(equal_share(rank, size, num_slices)) for rank in range(size))
        assert deal([2.5] * size, num_slices) == deal([0.0] * size, num_slices) == equal


@pytest.mark.parametrize("speeds", [(1.0, 3.0), (1.0, 2.0, 3.0), (4.0, 1.0, 0.0), (0.001, 1.0, 1.0), (1.0, 1.1, 0.9)])
def test_no_other_deal_is_done_earlier_than_the_one_by_speed(speeds: tuple[float, ...]) -> None:
    known = [speed for speed in speeds if speed]
    pace = [speed or sum(known) / len(known) for speed in speeds]
    for num_slices in range(len(speeds), 10):
        dealt = deal(speeds, num_slices)
        every = [
            sizes
            for sizes in itertools.product(range(1, num_slices + 1), repeat=len(speeds))
            if sum(sizes) == num_slices
        ]
        assert dealt in every
        assert max(map(slices_over, dealt, pace)) == min(max(map(slices_over, sizes, pace)) for sizes in every)


def slices_over(size: int, speed: float) -> float:
    """Seconds that a worker of this speed takes."""
    return size / speed
