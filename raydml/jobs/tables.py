"""Tables of jobs, what happened to them, and who supervises: times are milliseconds since 1970, UTC."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, Index, Text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from raydml.jobs.database import Base, Document, Milliseconds


class JobRow(Base):
    """One job: what was asked, what is wanted, how far it is. `version` grows with all of that but progress."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("jobs_of_project", "project_id", "id"),
        Index("jobs_of_kind", "project_id", "kind", "id"),
        Index("jobs_by_state", "state", "id"),
        Index("jobs_by_name", "name", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str]
    kind: Mapped[str] = mapped_column(server_default="job")  # job, sweep
    name: Mapped[str]
    priority: Mapped[int]
    state: Mapped[str]
    desired: Mapped[str]
    reason_code: Mapped[str | None]
    reason_message: Mapped[str | None] = mapped_column(Text)
    spec: Mapped[dict[str, Any]] = mapped_column(Document)
    spec_sha256: Mapped[str]
    created_at: Mapped[int] = mapped_column(Milliseconds)
    updated_at: Mapped[int] = mapped_column(Milliseconds)
    started_at: Mapped[int | None] = mapped_column(Milliseconds)
    finished_at: Mapped[int | None] = mapped_column(Milliseconds)
    deadline_seconds: Mapped[int | None]
    workers_min: Mapped[int]  # of a sweep: trials at once, as below
    workers_max: Mapped[int]
    worker_cpus: Mapped[float]  # of each
    granted: Mapped[int | None]  # workers that the supervisor lets it have now
    progress: Mapped[dict[str, Any] | None] = mapped_column(Document)
    attempt: Mapped[int]
    fruitless: Mapped[int]  # attempts in a row that came no further than the one before
    furthest: Mapped[int]  # the last step of any attempt
    not_before: Mapped[int] = mapped_column(Milliseconds)  # when the next attempt may start
    asked_at: Mapped[int | None] = mapped_column(Milliseconds)  # when it was asked to stop
    parent_job: Mapped[str | None]
    parent_step: Mapped[int | None]
    result: Mapped[dict[str, Any] | None] = mapped_column(Document)
    version: Mapped[int]
    last_event: Mapped[int]
    last_metric: Mapped[int]
    labels: Mapped[list[LabelRow]] = relationship(lazy="selectin", cascade="all, delete-orphan")


class LabelRow(Base):
    """A label of a job, to find it by."""

    __tablename__ = "job_labels"
    __table_args__ = (Index("labels_by_value", "key", "value", "job_id"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class AttemptRow(Base):
    """One process that Ray was asked to run for a job."""

    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    submission_id: Mapped[str] = mapped_column(unique=True)
    state: Mapped[str]  # launching, submitted, ended
    created_at: Mapped[int] = mapped_column(Milliseconds)
    submitted_at: Mapped[int | None] = mapped_column(Milliseconds)
    ended_at: Mapped[int | None] = mapped_column(Milliseconds)
    outcome: Mapped[str | None]  # succeeded, interrupted, failed, lost
    message: Mapped[str | None] = mapped_column(Text)


class EventRow(Base):
    """One thing that happened to a job; `seq` counts from 1 without a gap."""

    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    time: Mapped[int] = mapped_column(Milliseconds)
    type: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(Document)


class MetricRow(Base):
    """One line that training logged; `seq` counts from 1 without a gap. A step that was taken again comes again."""

    __tablename__ = "metrics"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    attempt: Mapped[int]
    step: Mapped[int]
    time: Mapped[int | None] = mapped_column(Milliseconds)
    data: Mapped[dict[str, Any]] = mapped_column(Document)


class CheckpointRow(Base):
    """A checkpoint that a job's run wrote; `removed_at` is when it had been dropped for later ones."""

    __tablename__ = "checkpoints"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    state_sha256: Mapped[str]
    seen_at: Mapped[int] = mapped_column(Milliseconds)
    removed_at: Mapped[int | None] = mapped_column(Milliseconds)


class ReadingRow(Base):
    """How far a file of a job's run has been read: the bytes, of the file with this inode."""

    __tablename__ = "readings"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    file: Mapped[str] = mapped_column(primary_key=True)
    inode: Mapped[int] = mapped_column(Milliseconds)
    offset: Mapped[int] = mapped_column("bytes", Milliseconds)


class LeaseRow(Base):
    """Who may act in a role until when; `epoch` grows with each new holder, and fences off the ones before."""

    __tablename__ = "leases"

    role: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    epoch: Mapped[int]
    expires_at: Mapped[int] = mapped_column(Milliseconds)
