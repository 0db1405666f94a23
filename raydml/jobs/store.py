"""What a server knows of jobs: every read and every request of their owners, each one transaction.

`project` filters by owner; None is the server itself. A request inside `database.transaction()` joins that transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from raydml.errors import JobChanged, JobConflict, JobNotFound, QuotaExceeded, SpecError
from raydml.files import digest_of_json
from raydml.jobs import verbs
from raydml.jobs.changes import add_event, touch
from raydml.jobs.database import Database
from raydml.jobs.ids import DEFAULT_PROJECT, milliseconds, new_id
from raydml.jobs.merging import merge_patch
from raydml.jobs.projects import owned
from raydml.jobs.records import (
    Attempt,
    Checkpoint,
    Event,
    Head,
    Job,
    Kind,
    Metric,
    Page,
    attempt_of,
    checkpoint_of,
    event_of,
    job_of,
    metric_of,
)
from raydml.jobs.states import STATES, TERMINAL, State
from raydml.jobs.sweeping import claim_of
from raydml.jobs.tables import AttemptRow, CheckpointRow, EventRow, JobRow, LabelRow, MetricRow
from raydml.spec import JobSpec
from raydml.specfile import parse_spec
from raydml.training.forks import copy_checkpoint

MOST = 1000  # items of one page


class JobStore:
    """Jobs of one server, whose runs lie in `home/runs/<job id>`. `clock` gives milliseconds since 1970."""

    def __init__(self, database: Database, home: Path, clock: Callable[[], int] = milliseconds) -> None:
        self.database, self.home, self._clock = database, home, clock

    def run_folder(self, job: str) -> Path:
        """Where the job's run lies, once an attempt began."""
        return self.home / "runs" / job

    def log_path(self, job: str, attempt: int) -> Path:
        """What an attempt wrote to stdout and stderr: a file that only grows."""
        return self.run_folder(job) / "attempts" / f"{attempt:05d}" / "output.log"

    def create(
        self,
        spec: Mapping[str, Any],
        *,
        project: str = DEFAULT_PROJECT,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        priority: int = 0,
        deadline_seconds: int | None = None,
        by: str = "server",
        parent: tuple[str, int | None] | None = None,
        id: str | None = None,
    ) -> Job:
        """A queued job, a sweep where its spec has a section `tune`. `by` is who asked, for the history.

        Raises SpecError with every mistake of the spec.
        """
        checked = parse_spec(spec)
        claim = claim_of(checked)
        document = checked.model_dump(mode="json")
        now = self._clock()
        row = JobRow(
            id=id or new_id("job", now),
            project_id=project,
            kind=claim.kind,
            name=name or checked.name,
            priority=priority,
            state="queued",
            desired="run",
            spec=document,
            spec_sha256=digest_of_json(document),
            created_at=now,
            updated_at=now,
            deadline_seconds=deadline_seconds,
            workers_min=claim.min,
            workers_max=claim.max,
            worker_cpus=claim.cpus,
            attempt=0,
            fruitless=0,
            furthest=0,
            not_before=0,
            parent_job=parent[0] if parent else None,
            parent_step=parent[1] if parent else None,
            version=1,
            last_event=0,
            last_metric=0,
            labels=[LabelRow(key=key, value=value) for key, value in (labels or {}).items()],
        )
        with self.database.transaction() as session:
            session.add(row)
            session.flush()  # before what refers to it
            add_event(session, row, "state", {"from": None, "to": "queued", "reason": None, "by": by}, now)
            session.flush()
            return job_of(row)

    def check_room(self, project: str, most: int) -> None:
        """Raises QuotaExceeded where the project has as many jobs that are not over as it may have."""
        live = select(func.count()).where(JobRow.project_id == project, JobRow.state.not_in(TERMINAL))
        with self.database.reading() as session:
            count = session.scalar(live) or 0
        if count >= most:
            raise QuotaExceeded(f"the project has {count} jobs of {most} that are not over: wait, or cancel some")

    def get(self, job: str, project: str | None = None) -> Job:
        """One job. Raises JobNotFound."""
        with self.database.reading() as session:
            return job_of(self._row(session, job, project))

    def list(
        self,
        *,
        project: str | None = None,
        kind: Kind | None = None,
        states: Collection[State] = (),
        labels: Mapping[str, str] | None = None,
        name: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page[Job]:
        """Jobs that fit all filters, newest first; `after` is a page's `next`. SpecError for an unknown state."""
        if unknown := set(states) - set(STATES):
            raise SpecError(f"state: {', '.join(sorted(unknown))}: there are {', '.join(STATES)}")
        query = owned(select(JobRow), project).order_by(JobRow.id.desc()).limit(min(limit, MOST) + 1)
        if kind is not None:
            query = query.where(JobRow.kind == kind)
        if states:
            query = query.where(JobRow.state.in_(states))
        if name is not None:
            query = query.where(JobRow.name == name)
        if after is not None:
            query = query.where(JobRow.id < after)
        for key, value in (labels or {}).items():
            labelled = select(LabelRow.job_id).where(LabelRow.key == key, LabelRow.value == value)
            query = query.where(JobRow.id.in_(labelled))
        with self.database.reading() as session:
            rows = session.scalars(query).all()
            shown = rows[: min(limit, MOST)]
            return Page(tuple(map(job_of, shown)), shown[-1].id if len(rows) > len(shown) else None)

    def patch(
        self,
        job: str,
        *,
        project: str | None = None,
        labels: Mapping[str, str | None] | None = None,
        priority: int | None = None,
        max_workers: int | None = None,
        version: int | None = None,
        by: str = "server",
    ) -> Job:
        """Change what is given; a label of None is dropped. Raises JobChanged where the job is not of this version.

        What is so already changes nothing, the version neither.
        """
        with self.database.transaction() as session:
            now, row = self._clock(), self._row(session, job, project, version)
            before = {label.key: label.value for label in row.labels}, row.priority
            if labels is not None:
                kept = {label.key: label for label in row.labels}
                for key, value in labels.items():
                    if value is None:
                        kept.pop(key, None)
                    elif key in kept:
                        kept[key].value = value
                    else:
                        kept[key] = LabelRow(key=key, value=value)
                row.labels = list(kept.values())
            if priority is not None:
                row.priority = priority
            if max_workers is not None:
                self._resize(session, row, now, by, min(row.workers_min, max_workers), max_workers)
            if before != ({label.key: label.value for label in row.labels}, row.priority):
                touch(row, now)
            session.flush()
            return job_of(row)

    def ask(
        self, verb: str, job: str, *, project: str | None = None, by: str = "server", version: int | None = None
    ) -> Job:
        """`verb` is pause, resume, cancel or kill. Raises JobConflict where the job's state does not allow it."""
        with self.database.transaction() as session:
            row = self._row(session, job, project, version)
            verbs.VERBS[verb](session, row, self._clock(), by)
            session.flush()
            return job_of(row)

    def resize(
        self,
        job: str,
        fewest: int | None,
        most: int,
        *,
        project: str | None = None,
        by: str = "server",
        version: int | None = None,
    ) -> Job:
        """Other numbers of workers, of which the server grants what there is room for; the bits stay the same.

        Without `fewest` that stays as far as `most` allows. Raises SpecError where the spec cannot have so many.
        """
        with self.database.transaction() as session:
            row = self._row(session, job, project, version)
            least = min(row.workers_min, most) if fewest is None else fewest
            self._resize(session, row, self._clock(), by, least, most)
            session.flush()
            return job_of(row)

    def _resize(self, session: Session, row: JobRow, now: int, by: str, fewest: int, most: int) -> None:
        if row.kind == "sweep":
            raise JobConflict(
                f"sweep {row.id} trains as many trials at once as it was granted when its attempt began: pause and "
                f"resume it for what there is room for now",
                state=row.state,
            )
        parse_spec(merge_patch(row.spec, {"parallel": {"workers": {"min": fewest, "max": most}}}))
        verbs.resize(session, row, now, by, fewest, most)

    def fork(
        self,
        job: str,
        *,
        step: int | None = None,
        changes: Mapping[str, Any] | None = None,
        project: str | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        by: str = "server",
    ) -> Job:
        """A new job that begins with a checkpoint of this one (the newest without `step`), its spec changed.

        `changes` is a JSON merge patch. Raises CheckpointError where the checkpoint is gone or damaged, SpecError,
        JobConflict of a sweep.
        """
        parent = self.get(job, project)
        spec = forked(parent, changes or {})
        id = new_id("job", self._clock())
        copied = copy_checkpoint(self.run_folder(job), self.run_folder(id), step, spec.digest())
        return self.create(
            spec.model_dump(mode="json"),
            project=parent.project,
            name=name,
            labels=labels if labels is not None else parent.labels,
            priority=parent.priority,
            by=by,
            parent=(job, copied),
            id=id,
        )

    def events(self, job: str, after: int = 0, limit: int = 100, project: str | None = None) -> tuple[Event, ...]:
        """Events behind number `after`, in order; empty where there is nothing yet. Raises JobNotFound."""
        with self.database.reading() as session:
            self._row(session, job, project)
            query = select(EventRow).where(EventRow.job_id == job, EventRow.seq > after).order_by(EventRow.seq)
            return tuple(map(event_of, session.scalars(query.limit(min(limit, MOST)))))

    def events_of_type(self, job: str, type: str) -> tuple[Event, ...]:
        """All events of one type, in order."""
        query = select(EventRow).where(EventRow.job_id == job, EventRow.type == type).order_by(EventRow.seq)
        with self.database.reading() as session:
            return tuple(map(event_of, session.scalars(query)))

    def metrics(self, job: str, after: int = 0, limit: int = 100, project: str | None = None) -> tuple[Metric, ...]:
        """Lines of training behind number `after`, in order; a step that was taken again comes again."""
        with self.database.reading() as session:
            self._row(session, job, project)
            query = select(MetricRow).where(MetricRow.job_id == job, MetricRow.seq > after).order_by(MetricRow.seq)
            return tuple(map(metric_of, session.scalars(query.limit(min(limit, MOST)))))

    def checkpoints(self, job: str, project: str | None = None) -> tuple[Checkpoint, ...]:
        """Every checkpoint that was seen, by step; those with `removed_at` are gone."""
        with self.database.reading() as session:
            self._row(session, job, project)
            query = select(CheckpointRow).where(CheckpointRow.job_id == job).order_by(CheckpointRow.step)
            return tuple(map(checkpoint_of, session.scalars(query)))

    def attempts(self, job: str, project: str | None = None) -> tuple[Attempt, ...]:
        """Every attempt, the first one first."""
        with self.database.reading() as session:
            self._row(session, job, project)
            query = select(AttemptRow).where(AttemptRow.job_id == job).order_by(AttemptRow.number)
            return tuple(map(attempt_of, session.scalars(query)))

    def heads(self, jobs: Sequence[str]) -> dict[str, Head]:
        """How far each of these jobs' records go: one query for all who follow; unknown ids are left out."""
        query = select(JobRow.id, JobRow.last_event, JobRow.last_metric, JobRow.finished_at).where(JobRow.id.in_(jobs))
        with self.database.reading() as session:
            return {id: Head(event, metric, ended is not None) for id, event, metric, ended in session.execute(query)}

    def _row(self, session: Session, job: str, project: str | None, version: int | None = None) -> JobRow:
        query = owned(select(JobRow).where(JobRow.id == job), project)
        if not session.info.get("reading"):
            query = query.with_for_update()
        row = session.scalars(query).one_or_none()
        if row is None:
            raise JobNotFound(f"there is no job {job}")
        if version is not None and row.version != version:
            raise JobChanged(f"job {job} is of version {row.version}, not {version}: look again", version=row.version)
        return row


def forked(parent: Job, changes: Mapping[str, Any]) -> JobSpec:
    """The spec of a fork. Raises SpecError, and JobConflict where either of them is a sweep."""
    spec = parse_spec(merge_patch(parent.spec, changes))
    if parent.kind == "sweep" or spec.tune is not None:
        raise JobConflict(
            f"job {parent.id}: a sweep begins with no checkpoint and is no job's parent: make one of a spec with a "
            f"section tune, and a job of the best spec that a sweep's result tells",
            state=parent.state,
        )
    return spec
