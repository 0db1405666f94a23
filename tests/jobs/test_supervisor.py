"""One turn of the supervisor at a time, over a cluster that does what the test says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from raydml.jobs import supervisor as module
from raydml.jobs.database import Database
from raydml.jobs.decisions import Decision, Rules, Snapshot, decide
from raydml.jobs.launcher import Unreachable
from raydml.jobs.records import Job
from raydml.jobs.store import JobStore
from raydml.jobs.supervisor import LEASE, Supervisor
from tests.jobs.cluster import FakeAttempt, FakeCluster
from tests.jobs.conftest import Clock, a_spec

RULES = Rules(retries=3, stop_seconds=60)


class World:
    """A store, a cluster and a supervisor."""

    def __init__(self, store: JobStore, home: Path, clock: Clock, cpus: float = 4) -> None:
        self.store, self.home, self.clock, self.cluster = store, home, clock, FakeCluster(cpus)
        self.supervisor = Supervisor(store.database, home, self.cluster, RULES, clock)

    def tick(self, seconds: float = 1) -> None:
        self.clock.pass_seconds(seconds)
        assert self.supervisor.tick()

    def attempt(self, job: str, number: int = 1) -> FakeAttempt:
        return FakeAttempt(self.cluster, self.home, job, number)

    def states(self, job: str) -> list[str]:
        return [event.data["to"] for event in self.store.events(job, limit=1000) if event.type == "state"]

    def started(self, number: int = 1, **changes: object) -> tuple[str, FakeAttempt]:
        """A job that trains."""
        job = self.store.create(a_spec(**changes)).id
        self.tick()
        attempt = self.attempt(job, number)
        attempt.begin()
        self.tick()
        assert self.store.get(job).state == "running"
        return job, attempt


@pytest.fixture
def world(store: JobStore, home: Path, clock: Clock) -> World:
    return World(store, home, clock)


def test_a_job_goes_from_the_queue_to_its_result(world: World) -> None:
    job, attempt = world.started()
    attempt.step(1)
    attempt.checkpoint(1)
    attempt.end("succeeded", result={"model_sha256": "ab"})
    world.tick()
    done = world.store.get(job)
    assert world.states(job) == ["queued", "starting", "running", "succeeded"]
    assert done.result == {"model_sha256": "ab"} and done.progress is not None and done.progress["step"] == 1
    assert [event.seq for event in world.store.events(job)] == list(range(1, done.last_event + 1))
    assert [each.outcome for each in world.store.attempts(job)] == ["succeeded"]
    assert world.cluster.launched == [f"{job}-a1"]


def test_a_driver_that_vanished_is_followed_by_another_attempt_on_the_same_run(world: World) -> None:
    job, attempt = world.started()
    attempt.checkpoint(10)
    attempt.die()
    world.tick()
    world.tick(2)
    lost = [event.data["reason"] for event in world.store.events(job) if event.data.get("to") == "recovering"]
    assert [reason["code"] for reason in lost] == ["driver_lost"]
    world.attempt(job, 2).begin()
    world.tick()
    world.attempt(job, 2).end("succeeded", result={})
    world.tick()
    assert world.states(job) == ["queued", "starting", "running", "recovering", "starting", "running", "succeeded"]


def test_attempts_that_come_no_further_use_up_the_budget_and_later_checkpoints_renew_it(world: World) -> None:
    job = world.store.create(a_spec()).id
    for number in range(1, 9):
        world.tick(100)
        attempt = world.attempt(job, number)
        attempt.begin()
        if number < 5:
            attempt.checkpoint(number)
        attempt.die()
        world.tick()
        assert (world.store.get(job).state == "failed") == (number == 8), number
    reason = world.store.get(job).reason
    assert reason is not None and reason.code == "budget_exhausted" and "4 attempts" in reason.message


def test_what_was_submitted_within_a_turn_is_not_taken_for_lost_later_in_it(world: World) -> None:
    old, attempt = world.started()
    attempt.checkpoint(10)
    attempt.die()
    new = world.store.create(a_spec()).id
    world.tick()  # closes the old one's attempt and starts the new job; then submits that and starts the old one again
    assert [each.outcome for each in world.store.attempts(new)] == [None]
    assert [each.outcome for each in world.store.attempts(old)] == ["lost", None]


def test_an_error_that_would_come_again_is_not_tried_again(world: World) -> None:
    job, attempt = world.started()
    attempt.end("failed", "TrainingDiverged", "the loss is not finite at step 3")
    world.tick()
    reason = world.store.get(job).reason
    assert world.store.get(job).state == "failed"
    assert reason is not None and (reason.code, reason.message) == ("diverged", "the loss is not finite at step 3")


@pytest.mark.parametrize(("verb", "end"), [("pause", "paused"), ("cancel", "cancelled")])
def test_a_stop_waits_for_the_checkpoint(world: World, verb: str, end: str) -> None:
    job, attempt = world.started()
    assert world.store.ask(verb, job).state == "stopping"
    world.tick()
    assert attempt.asked_to_stop and attempt.alive
    attempt.end("interrupted", "Interrupted", "stopped")
    world.tick()
    assert world.store.get(job).state == end
    if verb == "pause":
        assert world.store.ask("resume", job).state == "queued"
        world.tick()
        assert (world.store.get(job).state, world.store.get(job).attempt) == ("starting", 2)
        assert not world.attempt(job, 2).asked_to_stop


def test_a_stop_that_nobody_follows_ends_the_process(world: World) -> None:
    job, attempt = world.started()
    world.store.ask("cancel", job)
    world.tick()
    assert attempt.alive
    world.tick(RULES.stop_seconds + 1)
    assert not attempt.alive
    world.tick()
    assert world.store.get(job).state == "cancelled"


def test_a_kill_ends_the_process_at_once_even_while_it_is_asked_to_stop(world: World) -> None:
    job, attempt = world.started()
    world.store.ask("cancel", job)
    world.store.ask("kill", job)
    world.tick()
    assert not attempt.alive
    world.tick()
    assert world.store.get(job).state == "cancelled"


def test_a_deadline_ends_what_waits_and_what_runs(world: World) -> None:
    late = [world.store.create(a_spec(), deadline_seconds=50).id for _ in range(2)]
    world.store.ask("pause", late[1])
    world.tick()
    attempt = world.attempt(late[0])
    attempt.begin()
    world.tick(60)
    world.tick()
    assert attempt.asked_to_stop
    attempt.end("interrupted", "Interrupted", "stopped")
    world.tick()
    for job in late:
        found = world.store.get(job)
        assert found.state == "failed" and found.reason is not None and found.reason.code == "deadline_exceeded"


def test_jobs_start_by_priority_as_far_as_their_fewest_workers_fit_and_what_is_left_is_shared(world: World) -> None:
    low, attempt = world.started()
    assert world.store.get(low).progress is not None and attempt.place.order()["workers"] == 4
    high = world.store.create(a_spec(), priority=5).id
    big = world.store.create(a_spec(parallel={"workers": 3}), priority=1).id
    world.tick()
    assert world.attempt(high).place.order()["workers"] == 3, "its most, but for the fewest of the one that runs"
    assert world.store.get(low).state == "resizing"
    attempt.change(1)
    world.tick()
    assert world.store.get(low).state == "running"
    assert world.store.get(big).state == "queued"
    world.attempt(high).end("succeeded", result={})
    world.tick()
    assert world.store.get(big).state == "starting"


def test_a_job_that_can_never_fit_says_so_and_holds_nobody_up(world: World) -> None:
    giant = world.store.create(a_spec(parallel={"workers": 8}), priority=9).id
    small = world.store.create(a_spec()).id
    world.tick()
    reason = world.store.get(giant).reason
    assert reason is not None and reason.code == "no_room" and "8 workers of 1 CPUs" in reason.message
    assert world.store.get(small).state == "starting"


def test_more_workers_than_the_attempt_began_with_come_after_a_checkpoint(world: World) -> None:
    job, attempt = world.started(parallel={"workers": {"min": 1, "max": 2}})
    world.store.resize(job, None, 4)
    world.tick()
    assert attempt.asked_to_stop
    attempt.end("interrupted", "Interrupted", "stopped")
    world.tick()
    assert world.attempt(job, 2).place.order()["workers"] == 4
    assert world.store.get(job).state == "starting"


def test_a_cluster_that_died_with_all_it_knew_costs_an_attempt_each_and_no_job(world: World) -> None:
    jobs = [world.started()[0], world.store.create(a_spec()).id]
    world.tick()
    world.cluster.crash()
    with pytest.raises(Unreachable):
        world.tick()
    world.cluster.mend()
    world.tick()
    world.tick(2)
    assert [world.store.get(job).attempt for job in jobs] == [2, 2]
    assert sorted(world.cluster.processes) == sorted(f"{job}-a2" for job in jobs)


def test_only_the_holder_of_the_lease_acts_and_a_silent_one_is_replaced_and_fenced(
    world: World, database: Database
) -> None:
    job = world.store.create(a_spec()).id
    world.tick()
    other = Supervisor(database, world.home, world.cluster, RULES, world.clock)
    assert not other.tick()
    world.clock.pass_seconds(LEASE / 1000 + 1)
    assert other.tick()
    assert not world.supervisor.tick()
    other.close()
    assert world.supervisor.tick()
    hasty = Supervisor(database, world.home, world.cluster, RULES, world.clock, lease=2000)
    world.supervisor.close()
    assert hasty.tick() and not world.supervisor.tick()
    world.clock.pass_seconds(2.1)
    assert world.supervisor.tick(), "who promises less is replaced sooner"
    assert world.cluster.launched == [f"{job}-a1"]


def after_deciding(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Something comes between the next decisions and what is done about them."""

    def decide_and_then(snapshot: Snapshot, rules: Rules) -> list[Decision]:
        decisions = decide(snapshot, rules)
        monkeypatch.setattr(module, "decide", decide)
        happens()
        return decisions

    monkeypatch.setattr(module, "decide", decide_and_then)


def test_a_supervisor_that_was_replaced_in_the_middle_of_its_turn_changes_nothing_more(
    world: World, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = world.store.create(a_spec()).id
    other = Supervisor(database, world.home, FakeCluster(cpus=0), RULES, world.clock)

    def take_over() -> None:
        world.clock.pass_seconds(LEASE / 1000 + 1)
        assert other.tick()
        before.append(world.store.get(job))

    before: list[Job] = []
    after_deciding(monkeypatch, take_over)
    assert not world.supervisor.tick()
    assert world.store.get(job) == before[0] and before[0].state == "queued"
    assert world.cluster.launched == []


def test_what_was_decided_before_an_owner_changed_the_job_is_not_done(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [world.store.create(a_spec()).id for _ in range(2)]
    after_deciding(monkeypatch, lambda: world.store.ask("cancel", jobs[0]))
    world.tick()
    assert [world.store.get(job).state for job in jobs] == ["cancelled", "starting"]
    assert world.cluster.launched == [f"{jobs[1]}-a1"]
