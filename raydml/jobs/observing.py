"""The database, the files of runs and what the launcher sees -> one snapshot to decide by."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from raydml.jobs.decisions import End, Snapshot, Try, Watched
from raydml.jobs.launcher import Sight
from raydml.jobs.readings import reached
from raydml.jobs.sharing import Need
from raydml.jobs.states import TERMINAL
from raydml.jobs.tables import AttemptRow, CheckpointRow, JobRow
from raydml.jobs.workplace import Workplace

_QUEUED = 200  # of the queue, as many as may be looked at in a turn


def open_jobs(session: Session) -> list[JobRow]:
    """Every job with a process or on its way to one, and the head of the queue; with it all that a deadline ends."""
    order = (JobRow.priority.desc(), JobRow.id)
    live = select(JobRow).where(JobRow.state.not_in([*TERMINAL, "queued", "paused"]))
    queued = select(JobRow).where(JobRow.state == "queued").order_by(*order).limit(_QUEUED)
    waiting = select(JobRow).where(JobRow.state.in_(["queued", "paused"]), JobRow.deadline_seconds.is_not(None))
    rows = [*session.scalars(live), *session.scalars(queued), *session.scalars(waiting)]
    return list({row.id: row for row in rows}.values())


def observe(session: Session, home: Path, sight: Sight, now: int) -> tuple[Snapshot, dict[str, int]]:
    """The snapshot, and the version of each job in it: what was decided of another version is void."""
    rows = open_jobs(session)
    ids = [row.id for row in rows]
    attempts = select(AttemptRow).where(AttemptRow.job_id.in_(ids), AttemptRow.state != "ended")
    open = {attempt.job_id: attempt for attempt in session.scalars(attempts)}
    newest = select(CheckpointRow.job_id, func.max(CheckpointRow.step)).where(CheckpointRow.job_id.in_(open))
    durable = {job: step for job, step in session.execute(newest.group_by(CheckpointRow.job_id))}
    jobs = tuple(
        Watched(
            id=row.id,
            state=row.state,  # type: ignore[arg-type]
            desired=row.desired,  # type: ignore[arg-type]
            reason=row.reason_code,
            need=Need(row.id, row.priority, *_limits(row, row.id in open), row.worker_cpus),
            granted=row.granted,
            open=_try(row, open[row.id], home, sight, durable.get(row.id, 0)) if row.id in open else None,
            fruitless=row.fruitless,
            not_before=row.not_before,
            asked_at=row.asked_at,
            deadline_at=row.created_at + 1000 * row.deadline_seconds if row.deadline_seconds is not None else None,
        )
        for row in rows
    )
    return Snapshot(now, sight.cpus, jobs), {row.id: row.version for row in rows}


def _try(row: JobRow, attempt: AttemptRow, home: Path, sight: Sight, durable: int) -> Try:
    place = Workplace(home, row.id, attempt.number)
    started, ended = place.started(), place.ended()
    sweep = row.kind == "sweep"
    workers = place.order()["spec"]["parallel"]["workers"]
    least, most = _limits(row, begun=True) if sweep else (workers["min"], workers["max"])
    progress = row.progress or {}
    working = progress.get("attempt") == attempt.number or (sweep and started is not None)
    return Try(
        number=attempt.number,
        submitted=attempt.state == "submitted",
        process=sight.processes.get(attempt.submission_id),
        working=working,
        end=End(**ended) if ended else None,
        least=least,
        most=most,
        usable=tuple(started["usable"]) if started else (),
        workers=progress.get("workers") if working else None,
        further=reached(row, durable) > row.furthest,
    )


def _limits(row: JobRow, begun: bool) -> tuple[int, int]:
    """Fewest and most workers; a sweep keeps what it was granted until its attempt ends."""
    if row.kind == "sweep" and begun and row.granted is not None:
        return row.granted, row.granted
    return row.workers_min, row.workers_max
