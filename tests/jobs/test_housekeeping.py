"""What is removed because of its age, and what stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raydml.errors import RecordNotFound
from raydml.jobs.database import Database
from raydml.jobs.datasets import Datasets
from raydml.jobs.housekeeping import DAY, EVERY, Housekeeping, Keeping
from raydml.jobs.ids import born_at, milliseconds, new_id
from raydml.jobs.store import JobStore
from tests.jobs.conftest import Clock, a_spec
from tests.jobs.test_datasets import begun, pictures, sha256


@pytest.fixture(autouse=True)
def ids_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids never go back in time, and another test may have asked for one of the far future."""
    monkeypatch.setattr("raydml.jobs.ids._last", 0)


@pytest.fixture
def late() -> Clock:
    """A clock that begins now."""
    return Clock(milliseconds())


@pytest.fixture
def house(database: Database, home: Path, late: Clock) -> Housekeeping:
    return Housekeeping(database, home, Keeping(record_days=3, upload_days=2), late)


def test_a_round_comes_every_hour(house: Housekeeping, late: Clock) -> None:
    assert house.tick() and not house.tick()
    late.now += EVERY
    assert house.tick() and not house.tick()


def test_records_of_jobs_that_ended_long_ago_go_but_for_the_last_event(
    house: Housekeeping, database: Database, home: Path, late: Clock
) -> None:
    store = JobStore(database, home, late)
    over, live = store.create(a_spec()).id, store.create(a_spec()).id
    store.ask("cancel", over)
    count = len(store.events(over))
    house.tick()
    assert len(store.events(over)) == count > 1
    late.now += 3 * DAY + EVERY
    house.tick()
    assert [event.seq for event in store.events(over)] == [count]
    assert [event.seq for event in store.events(live)] == [1]


def test_an_upload_that_nobody_goes_on_with_goes_and_those_under_way_or_complete_stay(
    house: Housekeeping, database: Database, home: Path, late: Clock
) -> None:
    datasets, content = Datasets(database, home), pictures()
    left, whole = begun(datasets, content), begun(datasets, content)
    for each in (left, whole):
        datasets.put_part(each, None, 0, content, sha256(content))
    datasets.complete(whole, None)
    assert datasets.check(whole).state == "ready"
    house.tick()
    assert datasets.get(left, None).state == "uploading"
    late.now += 2 * DAY + EVERY
    house.tick()
    with pytest.raises(RecordNotFound):
        datasets.get(left, None)
    assert not any(left in name for name in os.listdir(home / "uploads"))
    assert datasets.get(whole, None).state == "ready" and datasets.folder(datasets.get(whole, None)).is_dir()


def test_a_copy_for_a_fork_that_never_came_goes_and_every_jobs_folder_stays(
    house: Housekeeping, database: Database, home: Path, late: Clock
) -> None:
    store = JobStore(database, home, late)
    job = store.create(a_spec()).id
    orphan, begun_elsewhere = new_id("job"), new_id("job")
    for run in (orphan, job, begun_elsewhere, "job_by_hand"):
        (home / "runs" / run / "checkpoints").mkdir(parents=True)
    (home / "runs" / begun_elsewhere / "attempts").mkdir()
    house.tick()
    assert (home / "runs" / orphan).is_dir(), "the fork may be under way"
    late.now += DAY + EVERY
    house.tick()
    assert sorted(os.listdir(home / "runs")) == sorted([job, begun_elsewhere, "job_by_hand"])


def test_an_id_tells_when_it_was_made() -> None:
    assert born_at(new_id("job", 1_234_567_890_123)) >= 1_234_567_890_123
    assert born_at(f"job_{'0' * 9}1{'0' * 16}") == 1
