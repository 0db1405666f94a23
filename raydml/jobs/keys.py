"""API keys: made once and shown once, stored as a hash, found by their prefix, refused once revoked or expired."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from raydml.errors import RecordNotFound, SpecError
from raydml.jobs.callers import Caller, Scope, parse_scopes
from raydml.jobs.database import Base, Document, Milliseconds
from raydml.jobs.ids import milliseconds, new_id
from raydml.jobs.projects import Owned, owned, project_of
from raydml.jobs.tokens import hashed, matches, new_token, prefix_of

DAY = 24 * 3600 * 1000  # milliseconds
_USED_EVERY = 60_000  # milliseconds between two notes of when a key was used
_NOBODY = hashed("")  # compared with where no key has the prefix, so that this takes as long


class ApiKey(Base, Owned):
    """One key. The token itself is nowhere but with its owner."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    prefix: Mapped[str] = mapped_column(unique=True)
    sha256: Mapped[str]
    scopes: Mapped[list[str]] = mapped_column(Document)
    created_at: Mapped[int] = mapped_column(Milliseconds)
    expires_at: Mapped[int | None] = mapped_column(Milliseconds)
    revoked_at: Mapped[int | None] = mapped_column(Milliseconds)
    used_at: Mapped[int | None] = mapped_column(Milliseconds)

    def state(self, now: int) -> str:
        """live, revoked or expired."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "live"


def create_key(
    session: Session, scopes: Iterable[str], project: str, name: str = "", days: float | None = None
) -> tuple[ApiKey, str]:
    """(the key, its token, which nobody can find out again). `project` by name, made where there is none."""
    return make_key(session, scopes, project_of(session, project).id, name, days)


def make_key(
    session: Session, scopes: Iterable[str], project: str, name: str = "", days: float | None = None
) -> tuple[ApiKey, str]:
    """The same for a project by its id. Raises SpecError."""
    checked = parse_scopes(scopes)
    if days is not None and not 0 < days <= 36_500:
        raise SpecError(f"a key is valid for more than 0 and at most 36500 days, not {days}")
    now = milliseconds()
    token, prefix = new_token()
    key = ApiKey(
        id=new_id("key"),
        project_id=project,
        name=name[:100],
        prefix=prefix,
        sha256=hashed(token),
        scopes=sorted(checked),
        created_at=now,
        expires_at=None if days is None else now + round(days * DAY),
    )
    session.add(key)
    session.flush()
    return key, token


def keys(session: Session, project: str | None = None) -> Sequence[ApiKey]:
    """Those of a project, all without one; the oldest first."""
    return session.scalars(owned(select(ApiKey), project).order_by(ApiKey.id)).all()


def find_key(session: Session, identity: str, project: str | None = None) -> ApiKey:
    """The key of this id or prefix. Raises RecordNotFound where the project has none."""
    key = session.scalar(owned(select(ApiKey).where(or_(ApiKey.id == identity, ApiKey.prefix == identity)), project))
    if key is None:
        raise RecordNotFound(f"there is no key {identity}: see raydml keys list")
    return key


def revoke_key(session: Session, identity: str, project: str | None = None) -> ApiKey:
    """Refuse the key from now on, by its id or prefix. Raises RecordNotFound where the project has none."""
    key = find_key(session, identity, project)
    key.revoked_at = key.revoked_at or milliseconds()
    return key


def any_key(session: Session, live_at: int | None = None) -> bool:
    """Whether a key was ever made; with a time, whether one is live then."""
    statement = select(func.count()).select_from(ApiKey)
    if live_at is not None:
        statement = statement.where(
            ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > live_at)
        )
    return bool(session.scalar(statement))


def caller_of(session: Session, token: str, now: int) -> Caller | None:
    """Who sends the token; None where it is no key, or no longer one. Takes as long for both."""
    prefix = prefix_of(token)
    key = None if prefix is None else session.scalar(select(ApiKey).where(ApiKey.prefix == prefix))
    right = matches(token, key.sha256 if key is not None else _NOBODY)
    if key is None or not right or key.state(now) != "live":
        return None
    scopes: list[Any] = key.scopes
    known: frozenset[Scope] = parse_scopes(scopes)
    return Caller(key.project_id, known, key.id)


def noted(session: Session, identity: str, now: int) -> bool:
    """Whether it stands there already that the key was used this minute."""
    used = session.scalar(select(ApiKey.used_at).where(ApiKey.id == identity))
    return used is not None and now < used + _USED_EVERY


def note_use(session: Session, identity: str, now: int) -> None:
    """Note when the key was used."""
    session.execute(update(ApiKey).where(ApiKey.id == identity).values(used_at=now))
