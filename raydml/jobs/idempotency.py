"""A client's `Idempotency-Key` -> the request is done once: its answer is kept with what it did, in one transaction.

A key is begun before the work, for `LEASE` seconds; the answer is written in the transaction that does the work. A kill
before that leaves nothing done and a key that the next request takes over; a kill after it leaves both.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy import LargeBinary, String, delete, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

from raydml.jobs.database import Base, Database, Document, Milliseconds
from raydml.jobs.ids import milliseconds

LEASE = 60_000  # milliseconds that a request may take before another one with its key takes over
KEPT = 24 * 3_600_000  # milliseconds that an answer is given again


class KeyRow(Base):
    """A key of a project for one route, with the digest of the first body; `status` and the rest once it is done."""

    __tablename__ = "idempotency_keys"

    project_id: Mapped[str] = mapped_column(String(30), primary_key=True)
    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    route: Mapped[str] = mapped_column(String(300), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    owner: Mapped[str] = mapped_column(String(32), unique=True)
    until: Mapped[int] = mapped_column(Milliseconds)
    created_at: Mapped[int] = mapped_column(Milliseconds, index=True)
    status: Mapped[int | None]
    headers: Mapped[dict[str, str] | None] = mapped_column(Document)
    body: Mapped[bytes | None] = mapped_column(LargeBinary)


@dataclass(frozen=True)
class Asked:
    """A request: who asks for what under which key, and the digest of the body."""

    project: str
    key: str
    route: str
    digest: str


@dataclass(frozen=True)
class Answer:
    """What was answered."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Begun:
    """The request is to be done now, by whoever holds this."""

    owner: str


@dataclass(frozen=True)
class AnotherBody:
    """The key was used for something else."""


@dataclass(frozen=True)
class InProgress:
    """Another request with this key is at work, for so many seconds at most."""

    seconds: float


class Keys:
    """The keys of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, asked: Asked, now: int | None = None) -> Begun | Answer | AnotherBody | InProgress:
        """Take the key, or say why that is not to be done."""
        now = milliseconds() if now is None else now
        owner = secrets.token_hex(16)
        with self._database.transaction() as session:
            session.execute(delete(KeyRow).where(KeyRow.created_at < now - KEPT))
            row = _insert(session, asked, owner, now)
            if row is None:
                return Begun(owner)
            if row.digest != asked.digest:
                return AnotherBody()
            if row.status is not None:
                assert row.headers is not None and row.body is not None
                return Answer(row.status, row.headers, row.body)
            if row.until > now:
                return InProgress((row.until - now) / 1000)
            row.owner, row.until = owner, now + LEASE
            return Begun(owner)

    def finish(self, begun: Begun, answer: Answer) -> bool:
        """Keep the answer, in the transaction that did the work; False where another request took over: undo it."""
        with self._database.transaction() as session:
            values: dict[str, Any] = {"status": answer.status, "headers": answer.headers, "body": answer.body}
            ours = update(KeyRow).where(KeyRow.owner == begun.owner, KeyRow.status.is_(None))
            return bool(session.connection().execute(ours.values(values)).rowcount)

    def give_up(self, begun: Begun) -> None:
        """Nothing was done: the key is free for another try."""
        with self._database.transaction() as session:
            session.execute(delete(KeyRow).where(KeyRow.owner == begun.owner, KeyRow.status.is_(None)))


def _insert(session: Session, asked: Asked, owner: str, now: int) -> KeyRow | None:
    """A new row, or the one that is there, locked."""
    place = asked.project, asked.key, asked.route
    if (row := session.get(KeyRow, place, with_for_update=True)) is not None:
        return row
    try:
        with session.begin_nested():
            session.add(
                KeyRow(
                    project_id=asked.project,
                    key=asked.key,
                    route=asked.route,
                    digest=asked.digest,
                    owner=owner,
                    until=now + LEASE,
                    created_at=now,
                )
            )
    except IntegrityError:  # on Postgres, another process came between
        return session.get_one(KeyRow, place, with_for_update=True)
    return None
