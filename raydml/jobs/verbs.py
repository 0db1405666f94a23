"""What an owner may ask of a job, and what each request does to its row; a request repeated changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy.orm import Session

from raydml.errors import JobConflict
from raydml.jobs.changes import add_event, move, touch, want
from raydml.jobs.states import LIVE, TERMINAL, Desired, State
from raydml.jobs.tables import JobRow

_FORCE: dict[str, int] = {"run": 0, "pause": 1, "cancel": 2, "kill": 3}  # a stronger wish replaces a weaker one


def pause(session: Session, row: JobRow, now: int, by: str) -> None:
    """The attempt saves a checkpoint and stops; a queued job waits."""
    if row.state != "paused":
        _stop(session, row, "pause", "paused", now, by)


def cancel(session: Session, row: JobRow, now: int, by: str) -> None:
    """The attempt saves a checkpoint and stops, for good."""
    _stop(session, row, "cancel", "cancelled", now, by)


def kill(session: Session, row: JobRow, now: int, by: str) -> None:
    """The attempt is ended at once, for good."""
    _stop(session, row, "kill", "cancelled", now, by)


def resume(session: Session, row: JobRow, now: int, by: str) -> None:
    """A paused job is queued again; one that is to run goes on."""
    _refuse_ended(row, "resume")
    if row.state == "stopping":
        raise JobConflict(f"job {row.id} is stopping ({row.desired}): wait until it is paused", state=row.state)
    if row.state == "paused":
        _told(session, row, "resume", now, by)
        want(row, "run", now)
        row.fruitless = 0
        move(session, row, "queued", now)


def resize(session: Session, row: JobRow, now: int, by: str, fewest: int, most: int) -> None:
    """Other numbers of workers; the supervisor grants what there is room for."""
    _refuse_ended(row, "resize")
    if (row.workers_min, row.workers_max) != (fewest, most):
        row.workers_min, row.workers_max = fewest, most
        _told(session, row, "resize", now, by, workers={"min": fewest, "max": most})


VERBS: dict[str, Callable[[Session, JobRow, int, str], None]] = {
    "pause": pause,
    "cancel": cancel,
    "kill": kill,
    "resume": resume,
}


def _stop(session: Session, row: JobRow, wish: Desired, at_once: State, now: int, by: str) -> None:
    """Toward a stop; at once where no process can be at work."""
    _refuse_ended(row, wish)
    if _FORCE[wish] <= _FORCE[row.desired] and row.state not in ("queued", "paused"):
        return
    _told(session, row, wish, now, by)
    want(row, wish, now)
    if row.state not in LIVE:
        move(session, row, at_once, now, "asked", f"{wish} was asked for by {by}")
    elif row.state != "stopping":
        move(session, row, "stopping", now, "asked", f"{wish} was asked for by {by}")


def _told(session: Session, row: JobRow, verb: str, now: int, by: str, **more: Any) -> None:
    add_event(session, row, "verb", {"verb": verb, "by": by, **more}, now)
    touch(row, now)


def _refuse_ended(row: JobRow, verb: str) -> None:
    if row.state in TERMINAL:
        raise JobConflict(f"job {row.id} is over ({row.state}) and cannot {verb}: fork it instead", state=row.state)
