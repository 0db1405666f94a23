"""One supervisor acts at a time: a lease in the database, whose epoch fences off whoever held it before."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from raydml.errors import LeaseLost
from raydml.jobs.database import Database
from raydml.jobs.tables import LeaseRow


class Lease:
    """A role that `holder` takes when it is free or its last holder fell silent. Times are milliseconds since 1970."""

    def __init__(self, database: Database, role: str, holder: str, lasts: int) -> None:
        self._database, self._role, self._holder, self._lasts = database, role, holder, lasts
        self._epoch = 0

    def take(self, now: int) -> bool:
        """Hold it from now on for another while; False where somebody else does."""
        with self._database.transaction() as session:
            row = self._row(session)
            if row is None:
                row = LeaseRow(role=self._role, holder="", epoch=0, expires_at=0)
                session.add(row)
            held = row.holder == self._holder and row.epoch == self._epoch
            if not held and row.expires_at > now:
                return False
            if not held:
                row.epoch += 1
            self._epoch, row.holder, row.expires_at = row.epoch, self._holder, now + self._lasts
        return True

    def check(self, session: Session) -> None:
        """Within the transaction that acts: raises LeaseLost where another holder came since, and keeps them waiting.

        An expired lease that nobody took is still ours.
        """
        row = self._row(session)
        if row is None or (row.holder, row.epoch) != (self._holder, self._epoch):
            raise LeaseLost(f"{self._holder} is the {self._role} no more: {row.holder if row else 'nobody'} is")

    def give_back(self) -> None:
        """Let the next one begin at once."""
        with self._database.transaction() as session:
            row = self._row(session)
            if row is not None and (row.holder, row.epoch) == (self._holder, self._epoch):
                row.expires_at = 0

    def _row(self, session: Session) -> LeaseRow | None:
        return session.scalars(select(LeaseRow).where(LeaseRow.role == self._role).with_for_update()).one_or_none()
