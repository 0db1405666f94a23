"""What tests of jobs share: a store on SQLite whose clock the test turns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from raydml.jobs.database import Database
from raydml.jobs.ids import new_id
from raydml.jobs.store import JobStore
from tests.jobs.postgres import postgres, say, why_not


@dataclass
class Clock:
    """Milliseconds that pass when the test says so."""

    now: int = 1_000_000

    def __call__(self) -> int:
        self.now += 1
        return self.now

    def pass_seconds(self, seconds: float) -> None:
        self.now += int(1000 * seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(home: Path) -> Iterator[Database]:
    database = Database.at(home)
    yield database
    database.close()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Of a Postgres that lives as long as the tests; skipped, loudly, where there is none."""
    if (reason := why_not()) is not None:
        say(reason)
        pytest.skip(reason)
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def either(request: pytest.FixtureRequest, home: Path) -> Iterator[Database]:
    """A fresh database of each kind."""
    if request.param == "sqlite":
        database = Database.at(home)
    else:
        url: str = request.getfixturevalue("postgres_url")
        name = new_id("sup")
        with psycopg.connect(url.format("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]  # a name of ours
        database = Database(url.format(name))
        database.migrate()
    yield database
    database.close()


@pytest.fixture
def store(database: Database, home: Path, clock: Clock) -> JobStore:
    return JobStore(database, home, clock)


def a_spec(**changes: Any) -> dict[str, Any]:
    """A spec that nobody has to train."""
    return {
        "name": "small",
        "data": {"kind": "glyphs"},
        "loss": {"kind": "triplet"},
        "parallel": {"workers": {"min": 1, "max": 4}},
    } | changes
