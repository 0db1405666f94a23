"""Rows -> what callers of the store are given: plain frozen values; times are milliseconds since 1970, UTC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from raydml.jobs.states import TERMINAL, Desired, State
from raydml.jobs.tables import AttemptRow, CheckpointRow, EventRow, JobRow, MetricRow

Item = TypeVar("Item")
Kind = Literal["job", "sweep"]


@dataclass(frozen=True)
class Reason:
    """Why a job is in its state: a code of an open set, such as `driver_lost`, and words."""

    code: str
    message: str


@dataclass(frozen=True)
class Parent:
    """The job and the checkpoint that a fork began with."""

    job: str
    step: int | None


@dataclass(frozen=True)
class Workers:
    """The fewest and the most workers that a job may have; of a sweep, trials at once."""

    min: int
    max: int


@dataclass(frozen=True)
class Job:
    """A job as it is now. `last_event` and `last_metric` are the highest numbers given out; 0 before the first."""

    id: str
    project: str
    kind: Kind
    name: str
    labels: dict[str, str]
    priority: int
    state: State
    desired: Desired
    reason: Reason | None
    spec: dict[str, Any]
    spec_sha256: str
    created_at: int
    updated_at: int
    started_at: int | None
    finished_at: int | None
    deadline_seconds: int | None
    workers: Workers
    granted: int | None  # workers that the server lets it have now
    progress: dict[str, Any] | None
    attempt: int
    parent: Parent | None
    result: dict[str, Any] | None
    version: int
    last_event: int
    last_metric: int

    @property
    def terminal(self) -> bool:
        """Whether nothing will happen to it any more."""
        return self.state in TERMINAL


@dataclass(frozen=True)
class Attempt:
    """One process that Ray was asked to run; `outcome` is succeeded, interrupted, failed or lost, once it ended."""

    number: int
    submission_id: str
    state: str
    created_at: int
    submitted_at: int | None
    ended_at: int | None
    outcome: str | None
    message: str | None


@dataclass(frozen=True)
class Event:
    """One thing that happened to a job."""

    seq: int
    time: int
    type: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Metric:
    """One line that training logged: a step's loss and times, a validation, a warning, or a save that failed."""

    seq: int
    attempt: int
    step: int
    time: int | None
    data: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of the job's run; `removed_at` tells when it was gone, None while it can be forked."""

    step: int
    state_sha256: str
    seen_at: int
    removed_at: int | None


@dataclass(frozen=True)
class Page(Generic[Item]):
    """Some of a list in its order; `next` is what to pass as `after` for more, None at the end."""

    items: tuple[Item, ...]
    next: str | None


@dataclass(frozen=True)
class Head:
    """How far a job's records go: what a follower compares its place with."""

    last_event: int
    last_metric: int
    terminal: bool


def job_of(row: JobRow) -> Job:
    """A job's record."""
    return Job(
        id=row.id,
        project=row.project_id,
        kind=row.kind,  # type: ignore[arg-type]  # a Kind: nothing else is written
        name=row.name,
        labels={label.key: label.value for label in sorted(row.labels, key=lambda label: label.key)},
        priority=row.priority,
        state=row.state,  # type: ignore[arg-type]  # a State: the table of moves lets nothing else in
        desired=row.desired,  # type: ignore[arg-type]
        reason=Reason(row.reason_code, row.reason_message or "") if row.reason_code else None,
        spec=row.spec,
        spec_sha256=row.spec_sha256,
        created_at=row.created_at,
        updated_at=row.updated_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        deadline_seconds=row.deadline_seconds,
        workers=Workers(row.workers_min, row.workers_max),
        granted=row.granted,
        progress=row.progress,
        attempt=row.attempt,
        parent=Parent(row.parent_job, row.parent_step) if row.parent_job else None,
        result=row.result,
        version=row.version,
        last_event=row.last_event,
        last_metric=row.last_metric,
    )


def attempt_of(row: AttemptRow) -> Attempt:
    """An attempt's record."""
    return Attempt(
        row.number,
        row.submission_id,
        row.state,
        row.created_at,
        row.submitted_at,
        row.ended_at,
        row.outcome,
        row.message,
    )


def event_of(row: EventRow) -> Event:
    """An event's record."""
    return Event(row.seq, row.time, row.type, row.data)


def metric_of(row: MetricRow) -> Metric:
    """A metric line's record."""
    return Metric(row.seq, row.attempt, row.step, row.time, row.data)


def checkpoint_of(row: CheckpointRow) -> Checkpoint:
    """A checkpoint's record."""
    return Checkpoint(row.step, row.state_sha256, row.seen_at, row.removed_at)
