"""Brings every job nearer to what its owner wants, one turn at a time: reads, looks, decides, acts.

Whatever dies in the middle of a turn, the next one goes on: an intention is in the database before anything is done
about it, and everything that is done may be done twice.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import structlog
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from raydml.errors import LeaseLost
from raydml.jobs.changes import add_event, move, touch, want
from raydml.jobs.database import Database
from raydml.jobs.decisions import (
    AskToStop,
    Close,
    Decision,
    EndProcess,
    Expire,
    Explain,
    Grant,
    Move,
    Rules,
    Seen,
    Start,
    Submit,
    decide,
)
from raydml.jobs.ids import milliseconds, new_id
from raydml.jobs.launcher import Launch, Launcher, Sight, Unreachable, submission_id
from raydml.jobs.leases import Lease
from raydml.jobs.observing import observe, open_jobs
from raydml.jobs.projects import project_home
from raydml.jobs.readings import Signature, reached, read_run, read_study, signature
from raydml.jobs.records import job_of
from raydml.jobs.sweeping import Claim, ordered, request_stop, study_folder
from raydml.jobs.tables import AttemptRow, CheckpointRow, JobRow
from raydml.jobs.workplace import Workplace
from raydml.training.record import RunRecord

log = structlog.get_logger()
ROLE = "supervisor"
LEASE = 15_000  # milliseconds after which a silent supervisor is replaced
PASSES = 3  # of one turn: a close, the next start and its submission need one each


class Supervisor:
    """One of possibly several; only who holds the lease acts, which lasts `lease` milliseconds after each turn.

    `clock` gives milliseconds since 1970.
    """

    def __init__(
        self,
        database: Database,
        home: Path,
        launcher: Launcher,
        rules: Rules | None = None,
        clock: Callable[[], int] = milliseconds,
        lease: int = LEASE,
    ) -> None:
        self._database, self._home, self._launcher, self._clock = database, home, launcher, clock
        self._rules = rules or Rules()
        self.name = f"{socket.gethostname()}-{os.getpid()}-{new_id('sup')}"
        self._lease = Lease(database, ROLE, self.name, lease)
        self._read: dict[str, Signature] = {}
        self.acts = False  # whether the last turn was ours

    def tick(self) -> bool:
        """One turn; False where another supervisor acts. Raises Unreachable where nobody can say what runs."""
        try:
            self.acts = self._lease.take(self._clock())
            if not self.acts:
                self._read.clear()
                return False
            if not self._busy():
                return True
            for _ in range(PASSES):
                sight = self._look()  # anew: the pass before may have submitted something
                self._read_runs()
                with self._database.reading() as session:
                    snapshot, versions = observe(session, self._home, sight, self._clock())
                decisions = decide(snapshot, self._rules)
                for decision in decisions:
                    self._act(decision, versions[decision.job])
                if not any(isinstance(decision, Start | Close) for decision in decisions):
                    break
        except LeaseLost as lost:
            log.warning("lease_lost", reason=str(lost))
            self.acts = False
            return False
        return True

    def _busy(self) -> bool:
        """Whether there is anything to decide: a cluster is asked for, and started, only then."""
        with self._database.reading() as session:
            return bool(open_jobs(session))

    def _look(self) -> Sight:
        """Before the files are read, so that nothing is missed of a process that is gone."""
        try:
            return self._launcher.look()
        except Unreachable:
            self._read_runs()
            raise

    def pause_runs(self) -> bool:
        """Ask every run to save a checkpoint and stop, without a change of what is wanted; whether any is alive."""
        alive = {name for name, process in self._look().processes.items() if process == "alive"}
        with self._database.reading() as session:
            working = [row.id for row in open_jobs(session) if submission_id(row.id, row.attempt) in alive]
        for job in working:
            request_stop(self._home, job)
        self._read_runs()
        return bool(working)

    def close(self) -> None:
        """Let another supervisor begin at once."""
        self._lease.give_back()

    def _read_runs(self) -> None:
        """Everything that runs have written since, each job in a transaction of its own."""
        with self._database.reading() as session:
            jobs = [row.id for row in open_jobs(session) if row.attempt]
        for job in jobs:
            run, study = self._home / "runs" / job, study_folder(self._home, job)
            found = signature(run, study)
            if self._read.get(job) != found:
                with self._database.transaction() as session:
                    self._lease.check(session)
                    row = _locked(session, job)
                    read_study(session, row, study, self._clock())
                    read_run(session, row, run, self._clock())
                self._read[job] = found
        self._read = {job: known for job, known in self._read.items() if job in jobs}

    def _act(self, decision: Decision, version: int) -> None:
        """Do it, unless the job has changed since: then the next look decides anew."""
        log.debug("decision", job=decision.job, decision=repr(decision))
        with self._database.transaction() as session:
            self._lease.check(session)
            row = _locked(session, decision.job)
            if row.version != version:
                return
            after = self._record(session, row, decision)
        if after is not None:
            after()

    def _record(self, session: Session, row: JobRow, decision: Decision) -> Callable[[], None] | None:
        """The decision in the database; what is to be done besides comes back, for when that is durable."""
        now = self._clock()
        match decision:
            case Start(workers=workers):
                self._open(session, row, workers, now)
            case Submit():
                return lambda: self._submit(row.id, row.attempt)
            case Seen():
                _attempt(session, row).state = "submitted"
            case Move(to=to, code=code, message=message):
                move(session, row, to, now, code, message)
            case Expire():
                want(row, "cancel", now)
                move(session, row, "stopping", now, "deadline_exceeded", "its deadline passed")
            case Explain(code=code, message=message):
                row.reason_code, row.reason_message = code, message
                touch(row, now)
            case Grant(workers=workers):
                self._grant(session, row, workers, now)
            case AskToStop():
                return lambda: request_stop(self._home, row.id)
            case EndProcess():
                return lambda: self._launcher.end(submission_id(row.id, row.attempt))
            case Close():
                self._close(session, row, decision, now)
        return None

    def _open(self, session: Session, row: JobRow, workers: int, now: int) -> None:
        """The next attempt, ordered in its folder; its process is started when this is durable."""
        newest = select(func.max(CheckpointRow.step)).where(CheckpointRow.job_id == row.id)
        row.furthest = max(row.furthest, reached(row, session.scalar(newest) or 0))
        row.attempt, row.granted = row.attempt + 1, workers
        claim = Claim(job_of(row).kind, row.workers_min, row.workers_max, row.worker_cpus)
        place = Workplace(self._home, row.id, row.attempt)
        shelf = project_home(self._home, row.project_id) / "collections"
        place.write_order(ordered(row.spec, claim, workers) | {"name": row.id}, workers, shelf)
        (place.run / "stop").unlink(missing_ok=True)
        name = submission_id(row.id, row.attempt)
        session.add(
            AttemptRow(job_id=row.id, number=row.attempt, submission_id=name, state="launching", created_at=now)
        )
        add_event(session, row, "attempt", {"attempt": row.attempt, "workers": workers}, now)
        move(session, row, "starting", now)

    def _submit(self, job: str, attempt: int) -> None:
        self._launcher.submit(Launch(submission_id(job, attempt), job, attempt))
        with self._database.transaction() as session:
            self._lease.check(session)
            row = session.get(AttemptRow, (job, attempt), with_for_update=True)
            assert row is not None, (job, attempt)
            if row.state == "launching":
                row.state, row.submitted_at = "submitted", self._clock()

    def _grant(self, session: Session, row: JobRow, workers: int, now: int) -> None:
        """Asked for in the run's folder before it is durable here: to ask twice is to ask once."""
        started = Workplace(self._home, row.id, row.attempt).started()
        assert started is not None, row.id
        least, most = started["limits"]
        RunRecord(self._home / "runs" / row.id).request_resize(workers, (least, most))
        row.granted = workers
        if row.state == "running":
            move(session, row, "resizing", now, "granted", f"{workers} workers")
        else:
            touch(row, now)

    def _close(self, session: Session, row: JobRow, close: Close, now: int) -> None:
        attempt = _attempt(session, row)
        attempt.state, attempt.ended_at, attempt.outcome, attempt.message = "ended", now, close.outcome, close.message
        row.fruitless = row.fruitless + 1 if close.counts else 0
        row.not_before = now + round(1000 * close.wait)
        if close.result is not None:
            row.result = close.result
        move(session, row, close.to, now, close.code, close.message)


def _locked(session: Session, job: str) -> JobRow:
    return session.scalars(select(JobRow).where(JobRow.id == job).with_for_update()).one()


def _attempt(session: Session, row: JobRow) -> AttemptRow:
    found = session.get(AttemptRow, (row.id, row.attempt))
    assert found is not None, (row.id, row.attempt)
    return found
