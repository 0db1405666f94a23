"""Events and metrics of jobs that ended long ago are dropped; who asks for them then is told so."""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import delete, func, select

from raydml.jobs.database import Database
from raydml.jobs.tables import EventRow, JobRow, MetricRow

Kind = Literal["events", "metrics"]
_TABLES: dict[Kind, type[EventRow] | type[MetricRow]] = {"events": EventRow, "metrics": MetricRow}


def forget(database: Database, before: int) -> None:
    """Drop what happened to jobs that ended before this time, but for the last event; the jobs themselves stay."""
    with database.transaction() as session:
        ended = select(JobRow.id).where(JobRow.finished_at < before)
        for table, last in ((EventRow, JobRow.last_event), (MetricRow, JobRow.last_metric)):
            number = select(last).where(JobRow.id == table.job_id).scalar_subquery()
            session.execute(delete(table).where(table.job_id.in_(ended), table.seq < number))


def first_kept(database: Database, kind: Kind, job: str) -> int:
    """The smallest number that is kept; 1 where there is none yet."""
    table: Any = _TABLES[kind]
    with database.reading() as session:
        return session.scalar(select(func.min(table.seq)).where(table.job_id == job)) or 1
