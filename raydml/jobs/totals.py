"""All jobs of a server as numbers: how many are in each state, and how far those are that are at work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from raydml.jobs.states import LIVE, STATES
from raydml.jobs.tables import EventRow, JobRow, LeaseRow

RECOVERIES = ("death", "lost", "broken", "restart")  # causes of a change that the group did not plan


@dataclass(frozen=True)
class LiveJob:
    """A job at work: its workers now, the samples of the steps so far, and how often its group broke."""

    id: str
    project: str
    workers: int
    samples: int
    recoveries: int


@dataclass(frozen=True)
class Totals:
    """Of all projects together."""

    states: Mapping[str, int]
    live: tuple[LiveJob, ...]


def totals(session: Session) -> Totals:
    """Every state has its number, also 0."""
    counted = session.execute(select(JobRow.state, func.count()).group_by(JobRow.state))
    states = dict.fromkeys(map(str, STATES), 0) | {state: count for state, count in counted}
    rows = session.scalars(select(JobRow).where(JobRow.state.in_(LIVE)).order_by(JobRow.id)).all()
    lost = _recoveries(session, [row.id for row in rows])
    return Totals(states, tuple(_live(row, lost[row.id]) for row in rows))


def lease_age(session: Session, role: str, lasts: int, now: int) -> float | None:
    """Seconds since the holder of a role was last heard of; None where there never was one. Times in milliseconds."""
    expires = session.scalar(select(LeaseRow.expires_at).where(LeaseRow.role == role))
    return None if not expires else (now - (expires - lasts)) / 1000


def _live(row: JobRow, recoveries: int) -> LiveJob:
    progress, batch = row.progress or {}, row.spec["batch"]
    samples = progress.get("step", 0) * batch["classes"] * batch["samples"]
    return LiveJob(row.id, row.project_id, progress.get("workers") or 0, samples, recoveries)


def _recoveries(session: Session, jobs: list[str]) -> Counter[str]:
    query = select(EventRow.job_id, EventRow.data).where(EventRow.job_id.in_(jobs), EventRow.type == "membership")
    return Counter(job for job, data in session.execute(query) if data["cause"] in RECOVERIES)
