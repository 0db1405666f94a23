"""Webhooks: a project's URLs that are told when its jobs change their state; what is to be sent waits in the database.

The message is written in the transaction that moves the job, so that none is lost and none is sent of what was undone.
It may come twice: its id is the same each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import ForeignKey, Index, delete, func, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from raydml.errors import QuotaExceeded, RecordNotFound
from raydml.jobs.database import Base, Database, Milliseconds
from raydml.jobs.ids import milliseconds, new_id
from raydml.jobs.posting import SECONDS, Posted, Targets, check_target, new_secret, post, signed_headers
from raydml.jobs.projects import Owned, owned
from raydml.jobs.tables import JobRow

MOST = 20  # webhooks of a project
TRIES = 10
_FIRST, _LONGEST = 5_000, 6 * 3_600_000  # milliseconds until the next try: doubled each time, four hours in all
_AT_ONCE = 16
_CLAIMED = round(4000 * SECONDS)  # milliseconds after which another process tries what one has begun
_FORGET_EVERY = 3_600_000  # milliseconds
_KEPT = 7 * 24 * 3_600_000  # milliseconds that what is over is kept


class WebhookRow(Base, Owned):
    """A URL, and the secret that its messages are signed with."""

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(primary_key=True)
    url: Mapped[str]
    secret: Mapped[str]
    created_by: Mapped[str]
    created_at: Mapped[int] = mapped_column(Milliseconds)


class DeliveryRow(Base, Owned):
    """A message to one URL. `state`: waiting, delivered or failed; `next_at`: when it is tried next."""

    __tablename__ = "deliveries"
    __table_args__ = (Index("deliveries_by_time", "state", "next_at"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"), index=True)
    body: Mapped[str]
    state: Mapped[str]
    tries: Mapped[int]
    next_at: Mapped[int] = mapped_column(Milliseconds)
    status: Mapped[int | None]
    problem: Mapped[str | None]
    created_at: Mapped[int] = mapped_column(Milliseconds)


def announce(session: Session, row: JobRow, data: dict[str, Any], now: int) -> None:
    """The job has moved: a message to each webhook of its project, in the transaction that moved it."""
    for webhook in session.scalars(select(WebhookRow.id).where(WebhookRow.project_id == row.project_id)):
        facts = {"job": row.id, "name": row.name, "seq": row.last_event, **data}
        body = {"type": "job.state", "timestamp": now, "data": facts}
        session.add(
            DeliveryRow(
                id=new_id("dlv", now),
                project_id=row.project_id,
                webhook_id=webhook,
                body=orjson.dumps(body).decode(),
                state="waiting",
                tries=0,
                next_at=now,
                created_at=now,
            )
        )


def new_webhook(session: Session, project: str, url: str, targets: Targets, by: str) -> WebhookRow:
    """A webhook with a new secret. Raises SpecError where the operator's settings do not allow the URL."""
    check_target(url, targets)
    count = session.scalar(select(func.count()).select_from(WebhookRow).where(WebhookRow.project_id == project)) or 0
    if count >= MOST:
        raise QuotaExceeded(f"the project has {count} webhooks of {MOST}: delete some")
    row = WebhookRow(
        id=new_id("whk"),
        project_id=project,
        url=url,
        secret=new_secret(),
        created_by=by,
        created_at=milliseconds(),
    )
    session.add(row)
    session.flush()
    return row


def webhooks(session: Session, project: str | None) -> Sequence[WebhookRow]:
    """Those of a project, the oldest first."""
    return session.scalars(owned(select(WebhookRow), project).order_by(WebhookRow.id)).all()


def find_webhook(session: Session, identity: str, project: str | None) -> WebhookRow:
    """The webhook. Raises RecordNotFound."""
    row = session.scalar(owned(select(WebhookRow).where(WebhookRow.id == identity), project))
    if row is None:
        raise RecordNotFound(f"there is no webhook {identity[:40]}")
    return row


def deliveries(session: Session, identity: str, project: str | None, limit: int) -> Sequence[DeliveryRow]:
    """Messages to a webhook, the newest first. Raises RecordNotFound."""
    find_webhook(session, identity, project)
    query = owned(select(DeliveryRow), project).where(DeliveryRow.webhook_id == identity)
    return session.scalars(query.order_by(DeliveryRow.id.desc()).limit(limit)).all()


@dataclass(frozen=True)
class Letter:
    """One message that is to be sent now."""

    id: str
    url: str
    secret: str
    body: bytes
    tries: int  # before this one


Send = Callable[[Letter, int], Posted]


class Courier:
    """Sends what waits; any number of processes may run one."""

    def __init__(
        self, database: Database, targets: Targets, clock: Callable[[], int] = milliseconds, send: Send | None = None
    ) -> None:
        self._database, self._clock = database, clock
        self._forgot = 0
        self._send = send or (lambda letter, now: _post(letter, now, targets))

    def tick(self) -> int:
        """Send what is due, one after another; how much that was."""
        letters = self._claim()
        for letter in letters:
            self._note(letter, self._send(letter, self._clock()))
        return len(letters)

    def _claim(self) -> list[Letter]:
        """What is due, and nobody else's until it should long have been answered."""
        now = self._clock()
        due = select(DeliveryRow).where(DeliveryRow.state == "waiting", DeliveryRow.next_at <= now)
        with self._database.reading() as session:
            if session.scalar(due.with_only_columns(func.count())) == 0:
                return []
        with self._database.transaction() as session:
            rows = session.scalars(due.order_by(DeliveryRow.id).limit(_AT_ONCE).with_for_update(skip_locked=True)).all()
            for row in rows:
                row.next_at = now + _CLAIMED
            hooks = {row.webhook_id: session.get_one(WebhookRow, row.webhook_id) for row in rows}
            return [
                Letter(row.id, hooks[row.webhook_id].url, hooks[row.webhook_id].secret, row.body.encode(), row.tries)
                for row in rows
            ]

    def _note(self, letter: Letter, posted: Posted) -> None:
        now, tries = self._clock(), letter.tries + 1
        state = "delivered" if posted.delivered else "failed" if tries >= TRIES else "waiting"
        values = {"state": state, "tries": tries, "status": posted.status, "problem": posted.problem or None}
        with self._database.transaction() as session:
            session.execute(
                update(DeliveryRow).where(DeliveryRow.id == letter.id).values(**values, next_at=now + wait(tries))
            )

    def forget_sometimes(self) -> None:
        """Once an hour, remove messages that were over long ago."""
        if self._clock() < self._forgot + _FORGET_EVERY:
            return
        self._forgot = self._clock()
        old = delete(DeliveryRow).where(DeliveryRow.state != "waiting", DeliveryRow.next_at < self._clock() - _KEPT)
        with self._database.transaction() as session:
            session.execute(old)


def wait(tries: int) -> int:
    """Milliseconds until the next try, after so many."""
    return int(min(_LONGEST, _FIRST * 2 ** (tries - 1)))


def _post(letter: Letter, now: int, targets: Targets) -> Posted:
    headers = signed_headers(letter.secret, letter.id, now // 1000, letter.body)
    return post(letter.url, headers, letter.body, targets)
