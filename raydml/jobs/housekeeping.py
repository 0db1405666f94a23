"""What nobody needs any more in a server's folder and database: told apart by its age, and removed.

Everything here may be done twice, and by several processes at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
from sqlalchemy import select

from raydml.files import remove_folder
from raydml.jobs.database import Database
from raydml.jobs.datasets import Datasets
from raydml.jobs.ids import born_at, milliseconds
from raydml.jobs.retention import forget
from raydml.jobs.tables import JobRow

log = structlog.get_logger()
DAY = 24 * 3600 * 1000  # milliseconds
EVERY = 3600 * 1000  # milliseconds between two rounds
_JOB = re.compile(r"job_[0-9a-hjkmnp-tv-z]{26}")


@dataclass(frozen=True)
class Keeping:
    """How long what is kept."""

    record_days: float = 90.0  # events and metrics of a job that is over
    upload_days: float = 7.0  # an upload that nobody goes on with


class Housekeeping:
    """Of one server's folder. `clock` gives milliseconds since 1970."""

    def __init__(
        self, database: Database, home: Path, keeping: Keeping, clock: Callable[[], int] = milliseconds
    ) -> None:
        self._database, self._home, self._keeping, self._clock = database, home, keeping, clock
        self._datasets = Datasets(database, home)
        self._last: int | None = None

    def tick(self) -> bool:
        """One round, where the last one is an hour ago; whether there was one."""
        now = self._clock()
        if self._last is not None and now < self._last + EVERY:
            return False
        self._last = now
        forget(self._database, now - round(self._keeping.record_days * DAY))
        for identity in self._datasets.expire(now - round(self._keeping.upload_days * DAY)):
            log.info("upload_expired", dataset=identity)
        self._remove_copies(now - DAY)
        return True

    def _remove_copies(self, before: int) -> None:
        """Checkpoints that a server copied for a fork before it was killed: no job has them, and no attempt began."""
        for run in (self._home / "runs").glob("job_*"):
            if not _JOB.fullmatch(run.name) or born_at(run.name) >= before:
                continue
            with self._database.reading() as session:
                known = session.scalar(select(JobRow.id).where(JobRow.id == run.name)) is not None
            if not known and {path.name for path in run.iterdir()} <= {"checkpoints"}:
                remove_folder(run)
                log.info("copy_removed", run=run.name)
