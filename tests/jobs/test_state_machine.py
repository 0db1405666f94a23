"""Owners ask, processes work and die, clusters crash and supervisors are killed between any two of their writes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import event
from sqlalchemy.orm import Session

from raydml.errors import JobConflict
from raydml.jobs.database import Database
from raydml.jobs.decisions import Rules
from raydml.jobs.launcher import Launch, Unreachable
from raydml.jobs.states import TERMINAL, may_move
from raydml.jobs.store import JobStore
from raydml.jobs.supervisor import LEASE, Supervisor
from tests.jobs.cluster import FakeAttempt, FakeCluster
from tests.jobs.conftest import Clock, a_spec

RULES = Rules(retries=4, stop_seconds=30)
JOBS = st.integers(0, 3)


class Killed(BaseException):
    """The supervisor's process is gone at this point."""


class Mortal(Database):
    """Dies before or after a commit, when its time has come."""

    left: int | None = None

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        if self.left == 0:
            raise Killed
        with super().transaction() as session:
            yield session
            if self.left == 1:
                raise Killed
        self.left = None if self.left is None else self.left - 1
        if self.left == 0:
            raise Killed


class MortalCluster(FakeCluster):
    """Kills whoever submits, before or after it is done."""

    kill_before = kill_after = False

    def submit(self, launch: Launch) -> None:
        if self.kill_before:
            raise Killed
        super().submit(launch)
        if self.kill_after:
            raise Killed


class Jobs(RuleBasedStateMachine):
    """Any order of everything that can happen."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.clock = Clock()
        self.database = Mortal(f"sqlite:///{self.home / 'raydml.sqlite3'}")
        self.database.migrate()
        self.store = JobStore(Database(f"sqlite:///{self.home / 'raydml.sqlite3'}"), self.home, self.clock)
        self.cluster = MortalCluster(cpus=3)
        self.jobs: list[str] = []
        self.ended: dict[str, str] = {}
        for database in (self.database, self.store.database):  # no power cuts here: what is written is written
            event.listen(
                database.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF")
            )
            database.engine.dispose()
        self.new_supervisor()

    def teardown(self) -> None:
        self.database.close()
        self.store.database.close()
        shutil.rmtree(self.home)

    def new_supervisor(self) -> None:
        self.supervisor = Supervisor(self.database, self.home, self.cluster, RULES, self.clock)

    def attempt(self, number: int) -> FakeAttempt | None:
        """The open attempt of a job, if its process lives."""
        if number >= len(self.jobs):
            return None
        job = self.jobs[number]
        attempt = FakeAttempt(self.cluster, self.home, job, self.store.get(job).attempt)
        return attempt if attempt.alive else None

    @initialize()
    def begin(self) -> None:
        self.create(0, None)

    @precondition(lambda self: len(self.jobs) < 4)
    @rule(priority=st.integers(-1, 1), deadline=st.sampled_from([None, None, 20]))
    def create(self, priority: int, deadline: int | None) -> None:
        spec = a_spec(parallel={"workers": {"min": 1 + len(self.jobs) % 2, "max": 3}})
        self.jobs.append(self.store.create(spec, priority=priority, deadline_seconds=deadline).id)

    @rule(number=JOBS, verb=st.sampled_from(["pause", "resume", "cancel", "kill"]))
    def ask(self, number: int, verb: str) -> None:
        if number < len(self.jobs):
            terminal = self.store.get(self.jobs[number]).terminal
            try:
                self.store.ask(verb, self.jobs[number])
                assert not terminal
            except JobConflict:
                assert terminal or verb == "resume"

    @rule(number=JOBS, most=st.integers(1, 4))
    def resize(self, number: int, most: int) -> None:
        if number < len(self.jobs) and not self.store.get(self.jobs[number]).terminal:
            self.store.resize(self.jobs[number], None, most)

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 40.0]))
    def tick(self, seconds: float) -> None:
        self.clock.pass_seconds(seconds)
        try:
            self.supervisor.tick()
        except Unreachable:
            self.cluster.mend()

    @rule(commits=st.integers(1, 8))
    def die_at_a_commit(self, commits: int) -> None:
        self.database.left = commits
        self.die()

    @rule(after=st.booleans())
    def die_at_a_launch(self, after: bool) -> None:
        self.cluster.kill_before, self.cluster.kill_after = not after, after
        self.die()

    def die(self) -> None:
        try:
            self.tick(1.0)
        except Killed:
            self.clock.pass_seconds(LEASE / 1000 + 1)
            self.new_supervisor()
        self.database.left = None
        self.cluster.kill_before = self.cluster.kill_after = False

    @rule()
    def crash_the_cluster(self) -> None:
        self.cluster.crash()

    @rule(number=JOBS, what=st.sampled_from(["begin", "work", "work", "die", "fail", "break", "succeed"]))
    def live(self, number: int, what: str) -> None:
        attempt = self.attempt(number)
        if attempt is None:
            return
        if what == "begin" and attempt.place.started() is None:
            attempt.begin()
        elif what == "work" and attempt.place.started():
            self.work(attempt)
        elif what == "die":
            attempt.die()
        elif what == "fail":
            attempt.end("failed", "ResourceError", "no memory")
        elif what == "break":
            attempt.end("failed", "DataError", "no file")
        elif what == "succeed":
            attempt.end("succeeded", result={"model_sha256": "ab"})

    def work(self, attempt: FakeAttempt) -> None:
        """As a run does: it stops on request, takes the workers it is given, and leaves checkpoints."""
        if attempt.asked_to_stop:
            attempt.end("interrupted", "Interrupted", "stopped")
            return
        steps = sorted(int(path.name[5:]) for path in attempt.place.run.glob("checkpoints/step-*"))
        attempt.step((steps[-1] if steps else 0) + 1, workers=self.store.get(attempt.place.job).progress["workers"])  # type: ignore[index]
        attempt.checkpoint((steps[-1] if steps else 0) + 1)

    @invariant()
    def what_was_acknowledged_is_there_and_what_ended_stays_ended(self) -> None:
        for job in self.jobs:
            found = self.store.get(job)
            assert self.ended.setdefault(job, found.state) == found.state if job in self.ended else True
            if found.terminal:
                self.ended[job] = found.state
            events = self.store.events(job, limit=1000)
            assert [event.seq for event in events] == list(range(1, found.last_event + 1))
            metrics = self.store.metrics(job, limit=1000)
            assert [metric.seq for metric in metrics] == list(range(1, found.last_metric + 1))
            moves = [(event.data["from"], event.data["to"]) for event in events if event.type == "state"]
            assert all(before is None or may_move(before, after) for before, after in moves)
            assert [after for _, after in moves][:-1] == [before for before, _ in moves][1:]
            assert sum(after in TERMINAL for _, after in moves) == found.terminal

    @invariant()
    def no_job_has_two_processes(self) -> None:
        living = [name.partition("-a")[0] for name, state in self.cluster.processes.items() if state == "alive"]
        assert len(living) == len(set(living))

    def drain(self) -> None:
        """When nothing more goes wrong and everybody works, each job comes to rest."""
        for _ in range(400):
            if all(self.store.get(job).state in (*TERMINAL, "paused") for job in self.jobs):
                return
            self.tick(1.0)
            for number in range(len(self.jobs)):
                attempt = self.attempt(number)
                if attempt is None:
                    continue
                if attempt.place.started() is None:
                    attempt.begin()
                elif attempt.asked_to_stop:
                    self.work(attempt)
                elif self.store.get(self.jobs[number]).state == "running":
                    attempt.end("succeeded", result={})
                else:
                    attempt.change(self.store.get(self.jobs[number]).granted or 1)
        raise AssertionError([self.store.get(job) for job in self.jobs])


class Drained(Jobs):
    """At the end everything comes to rest."""

    def teardown(self) -> None:
        try:
            self.drain()
            self.what_was_acknowledged_is_there_and_what_ended_stays_ended()
        finally:
            super().teardown()


class DrainedOften(Drained):
    """As many histories as a night allows."""


CALM = settings(deadline=None, suppress_health_check=list(HealthCheck), stateful_step_count=25, derandomize=True)
Drained.TestCase.settings = settings(CALM, max_examples=8)
DrainedOften.TestCase.settings = settings(CALM, max_examples=300, derandomize=False)
TestJobsComeToRest = Drained.TestCase
TestJobsComeToRestOften = pytest.mark.chaos(pytest.mark.timeout(3600)(DrainedOften.TestCase))
