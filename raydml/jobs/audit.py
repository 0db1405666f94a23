"""Who did what, on what, with which outcome: one row for each change that a key asked for, never changed again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Integer, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from raydml.jobs.callers import Caller
from raydml.jobs.database import Base, Milliseconds
from raydml.jobs.ids import milliseconds
from raydml.jobs.projects import Owned, owned


class AuditRow(Base, Owned):
    """One request that changed something, or was not allowed to."""

    __tablename__ = "audit"

    seq: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    time: Mapped[int] = mapped_column(Milliseconds)
    caller: Mapped[str]
    action: Mapped[str]
    target: Mapped[str]
    status: Mapped[int] = mapped_column(Integer)
    request_id: Mapped[str]
    address: Mapped[str]


@dataclass(frozen=True)
class Deed:
    """What is to be written down. `action`: the method; `target`: the path; `address`: where the request came from."""

    caller: Caller
    action: str
    target: str
    status: int
    request_id: str
    address: str


def record(session: Session, deeds: Sequence[Deed]) -> None:
    """Add the deeds, in order."""
    now = milliseconds()
    for deed in deeds:
        session.add(
            AuditRow(
                project_id=deed.caller.project,
                time=now,
                caller=deed.caller.name,
                action=deed.action[:100],
                target=deed.target[:500],
                status=deed.status,
                request_id=deed.request_id,
                address=deed.address[:64],
            )
        )


def deeds(session: Session, project: str | None, before: int | None, limit: int) -> Sequence[AuditRow]:
    """Rows of the project, the newest first; `before`: those with a smaller number."""
    statement = owned(select(AuditRow), project).order_by(AuditRow.seq.desc()).limit(limit)
    return session.scalars(statement if before is None else statement.where(AuditRow.seq < before)).all()
