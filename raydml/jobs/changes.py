"""Every way in which a job's row changes: an event, a move between states, a version. Within a transaction."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from raydml.jobs.states import TERMINAL, Desired, State, may_move
from raydml.jobs.tables import EventRow, JobRow
from raydml.jobs.webhooks import announce


def add_event(session: Session, row: JobRow, type: str, data: dict[str, Any], now: int) -> None:
    """The job's next event; the row must be locked, so that its number is nobody else's."""
    row.last_event += 1
    session.add(EventRow(job_id=row.id, seq=row.last_event, time=now, type=type, data=data))
    if type == "state":
        announce(session, row, data, now)
    row.updated_at = max(now, row.updated_at)


def touch(row: JobRow, now: int) -> None:
    """Another version: its state changed, or what its owner set. Progress is beside that."""
    row.version += 1
    row.updated_at = max(now, row.updated_at)


def move(session: Session, row: JobRow, after: State, now: int, code: str | None = None, message: str = "") -> None:
    """To another state, with its reason and an event; a move that the table does not have is a defect of ours."""
    before: State = row.state  # type: ignore[assignment]
    assert may_move(before, after), f"{row.id}: {before} -> {after}"
    row.state, row.reason_code, row.reason_message = after, code, message or None
    if after == "running" and row.started_at is None:
        row.started_at = now
    if after in TERMINAL:
        row.finished_at = now
    if after in TERMINAL or after in ("paused", "queued"):
        row.granted = None
    reason = {"code": code, "message": message} if code else None
    add_event(session, row, "state", {"from": before, "to": after, "reason": reason}, now)
    touch(row, now)


def want(row: JobRow, desired: Desired, now: int) -> None:
    """What the owner wants from now on; the clock of a stop starts with the first wish to stop."""
    if row.desired == "run" and desired != "run":
        row.asked_at = now
    elif desired == "run":
        row.asked_at = None
    row.desired = desired
