"""Ids of jobs -> how far each one's events, metrics and logs go: one query for all who follow them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import select

from raydml.jobs.database import Database
from raydml.jobs.states import TERMINAL, State
from raydml.jobs.tables import JobRow


@dataclass(frozen=True)
class Standing:
    """The numbers of the last event and metric, the state, and the number of the newest attempt, 0 for none."""

    last_event: int
    last_metric: int
    state: State
    attempt: int

    @property
    def terminal(self) -> bool:
        """Whether nothing will come any more."""
        return self.state in TERMINAL

    def over(self, attempt: int) -> bool:
        """Whether the attempt writes nothing any more."""
        return self.terminal or self.attempt > attempt


def standings(database: Database, jobs: Collection[str]) -> dict[str, Standing]:
    """How far these jobs are; unknown ids are left out."""
    columns = JobRow.last_event, JobRow.last_metric, JobRow.state, JobRow.attempt
    with database.reading() as session:
        rows = session.execute(select(JobRow.id, *columns).where(JobRow.id.in_(jobs)))
        return {job: Standing(event, metric, state, attempt) for job, event, metric, state, attempt in rows}  # type: ignore[arg-type]
