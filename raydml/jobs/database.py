"""A URL in; transactions on SQLite or Postgres out, whose tables are those that the newest migration makes.

To add tables: a file of its own in this folder whose classes derive from `Base`, imported by `schema.py`, and a
migration of its own in `migrations/versions/`, which names the one before it as its `down_revision`.
`tests/jobs/test_database.py` fails where classes and migrations differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import orjson
from alembic import command
from alembic.config import Config
from sqlalchemy import BigInteger, Engine, Text, TypeDecorator, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Session

from raydml.errors import ResourceError, SpecError
from raydml.files import network_file_system

MIGRATIONS = Path(__file__).parent / "migrations"
PATIENCE = 30  # seconds that a transaction waits for another one's locks
_LOCK = 0x7261796D  # of Postgres' advisory locks: who migrates holds it
_PRAGMAS = ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", f"busy_timeout = {PATIENCE * 1000}")

Milliseconds = BigInteger


class Document(TypeDecorator[Any]):
    """A JSON value as text, alike on both databases: nobody asks them about what is inside. NaN becomes null."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str | None:
        """The text; None stays the absence of a value."""
        return None if value is None else orjson.dumps(value).decode()

    def process_result_value(self, value: str | None, dialect: Any) -> Any:
        """The value."""
        return None if value is None else orjson.loads(value)


class Base(DeclarativeBase):
    """Of every table of the server."""


class Database:
    """Connections to one database. `migrate` once before use; threads and processes may share it by its URL."""

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self._open: ContextVar[Session | None] = ContextVar("session", default=None)

    @classmethod
    def at(cls, home: Path) -> Database:
        """The SQLite file of a server's folder, made where there is none, its tables up to date."""
        home.mkdir(parents=True, exist_ok=True)
        database = cls(default_url(home))
        database.migrate()
        return database

    @property
    def is_sqlite(self) -> bool:
        """Whether one file is the whole database, with one writer at a time."""
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Everything in the block happens, durably, or nothing; inside another transaction's block it joins that one.

        On SQLite writers come one after another; on Postgres (READ COMMITTED) rows are locked by `with_for_update`.
        """
        joined = self._open.get()
        if joined is not None:
            assert not joined.info.get("reading"), "a transaction cannot begin within a reading"
            yield joined
            return
        with self._session(reading=False) as session:
            yield session
            session.commit()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A consistent look that waits for nobody on SQLite; inside a transaction's block, what that one sees."""
        joined = self._open.get()
        if joined is not None:
            yield joined
            return
        with self._session(reading=True) as session:
            yield session

    @contextmanager
    def _session(self, reading: bool) -> Iterator[Session]:
        connection = self.engine.connect().execution_options(raydml_reading=reading)
        if reading and not self.is_sqlite:
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        with connection, Session(connection, expire_on_commit=False, info={"reading": reading}) as session:
            token = self._open.set(session)
            try:
                yield session
            finally:
                self._open.reset(token)

    def migrate(self) -> None:
        """Bring the tables up to date, one process at a time. ResourceError where the database cannot be reached."""
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        try:
            with self.transaction() as session:
                if not self.is_sqlite:
                    session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
                config.attributes["connection"] = session.connection()
                command.upgrade(config, "heads")
        except OperationalError as error:
            shown = self.engine.url.render_as_string(hide_password=True)
            raise ResourceError(f"the database {shown} cannot be used: {error.orig}") from error

    def close(self) -> None:
        """Give back all connections."""
        self.engine.dispose()


def default_url(home: Path) -> str:
    """The file of a server's folder."""
    return f"sqlite:///{home / 'raydml.sqlite3'}"


def _engine(url: str) -> Engine:
    """SpecError for a URL of neither SQLite nor Postgres, ResourceError for a SQLite file on a network file system."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise SpecError("the database's URL is none: write sqlite:///PATH or postgresql://USER@HOST/NAME") from None
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        driver = parsed.set(drivername="postgresql+psycopg")
        return create_engine(driver, isolation_level="READ COMMITTED", pool_pre_ping=True, pool_size=10)
    if backend != "sqlite" or not parsed.database:
        raise SpecError(f"a database is sqlite:///PATH or postgresql://USER@HOST/NAME, not {backend}")
    path = Path(parsed.database).absolute()
    if (kind := network_file_system(path.parent)) is not None:
        raise ResourceError(
            f"{path} is on a network file system ({kind}), whose locks SQLite cannot trust: keep the database on a "
            f"local disk, or give the URL of a Postgres"
        )
    engine = create_engine(parsed, pool_size=10, max_overflow=50, connect_args={"check_same_thread": False})
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: Any, _: Any) -> None:
    """Transactions are begun by us, not by the driver."""
    connection.isolation_level = None
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Any) -> None:
    reading = connection.get_execution_options().get("raydml_reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
