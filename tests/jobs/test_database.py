"""Transactions, migrations and leases, on SQLite and on a real Postgres."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, select

from raydml.errors import LeaseLost, ResourceError, SpecError
from raydml.jobs import database as module
from raydml.jobs.database import Database
from raydml.jobs.ids import PATTERN, new_id
from raydml.jobs.leases import Lease
from raydml.jobs.schema import Base
from raydml.jobs.tables import LeaseRow


def test_migrations_make_the_tables_that_the_classes_describe(either: Database) -> None:
    with either.transaction() as session:
        context = MigrationContext.configure(session.connection(), opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_servers_that_start_together_migrate_once(either: Database) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: either.migrate(), range(4)))


def test_a_transaction_happens_whole_or_not_at_all_and_one_inside_belongs_to_it(either: Database) -> None:
    def add(role: str) -> None:
        with either.transaction() as session:
            session.add(LeaseRow(role=role, holder="a", epoch=1, expires_at=0))

    with pytest.raises(ZeroDivisionError), either.transaction():
        add("inner")
        raise ZeroDivisionError
    with either.transaction():
        add("kept")
        with either.reading() as session:
            assert session.scalar(select(func.count()).select_from(LeaseRow)) == 1, "its own writes are seen"
    with either.reading() as session:
        assert session.scalars(select(LeaseRow.role)).all() == ["kept"]


def test_of_many_who_want_a_lease_one_has_it_and_the_next_holder_fences_it_off(either: Database) -> None:
    leases = [Lease(either, "supervisor", f"holder {number}", 1000) for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        either.migrate()
        taken = list(pool.map(lambda lease: lease.take(100), leases[:1])) + list(
            pool.map(lambda lease: lease.take(200), leases[1:])
        )
    assert taken == [True] + 5 * [False]
    assert leases[0].take(900) and not leases[1].take(1800)
    assert leases[1].take(1901)
    with either.transaction() as session:
        leases[1].check(session)
        with pytest.raises(LeaseLost, match="holder 1 is"):
            leases[0].check(session)
    assert not leases[0].take(2000)
    leases[1].give_back()
    assert leases[0].take(2001)


def test_an_unusable_database_is_refused_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("mysql://a/b", "nonsense", "sqlite://"):
        with pytest.raises(SpecError, match="sqlite:///PATH or postgresql://"):
            Database(url)
    with pytest.raises(ResourceError, match=r"postgresql\+psycopg://raydml:\*\*\*@.* cannot be used"):
        Database(f"postgresql://raydml:secret@/x?host={tmp_path}").migrate()
    monkeypatch.setattr(module, "network_file_system", lambda folder: "nfs4")
    with pytest.raises(ResourceError, match=r"network file system \(nfs4\).*Postgres"):
        Database(f"sqlite:///{tmp_path / 'x.sqlite3'}")


def test_ids_sort_by_the_time_at_which_they_were_made() -> None:
    ids = [new_id("job") for _ in range(1000)]
    assert ids == sorted(ids) and len(set(ids)) == 1000
    assert all(re.fullmatch(f"job_{PATTERN}", each) for each in ids)
    assert new_id("job", now_ms=10**15) > ids[-1]
