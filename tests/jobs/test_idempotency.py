"""A request is done once, however often it is sent, and whatever is killed in between."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from raydml.jobs.database import Database
from raydml.jobs.idempotency import KEPT, LEASE, AnotherBody, Answer, Asked, Begun, InProgress, Keys
from raydml.jobs.store import JobStore
from tests.jobs.conftest import a_spec

ASKED = Asked("prj_a", "key-1", "POST /v1/jobs", "digest")
DONE = Answer(201, {"Location": "/v1/jobs/1"}, b'{"id": 1}')


@pytest.fixture
def keys(either: Database) -> Keys:
    return Keys(either)


def begun(found: object) -> Begun:
    assert isinstance(found, Begun)
    return found


def test_a_request_that_was_done_is_answered_as_before(keys: Keys) -> None:
    assert keys.finish(begun(keys.begin(ASKED)), DONE)
    assert keys.begin(ASKED) == DONE
    assert keys.begin(replace(ASKED, digest="other")) == AnotherBody()


def test_a_key_counts_for_one_project_and_one_route(keys: Keys) -> None:
    assert keys.finish(begun(keys.begin(ASKED)), DONE)
    for other in (replace(ASKED, project="prj_b"), replace(ASKED, route="POST /v1/jobs/1/fork")):
        assert isinstance(keys.begin(other), Begun)


def test_a_second_request_waits_for_the_first_and_takes_over_where_that_one_never_ends(keys: Keys) -> None:
    first = begun(keys.begin(ASKED, now=1000))
    assert keys.begin(ASKED, now=1000 + LEASE - 2000) == InProgress(2.0)
    assert keys.begin(replace(ASKED, digest="other"), now=2000) == AnotherBody()
    second = begun(keys.begin(ASKED, now=1000 + LEASE))
    assert not keys.finish(first, DONE), "two answers were kept"
    assert keys.finish(second, DONE)


def test_a_request_that_was_refused_leaves_its_key_free(keys: Keys) -> None:
    first = begun(keys.begin(ASKED))
    keys.give_up(first)
    second = begun(keys.begin(ASKED))
    keys.give_up(first)  # which is no longer its own
    assert isinstance(keys.begin(ASKED), InProgress)
    assert keys.finish(second, DONE)
    keys.give_up(second)  # which is done
    assert keys.begin(ASKED) == DONE


def test_an_answer_is_forgotten_after_a_day(keys: Keys) -> None:
    assert keys.finish(begun(keys.begin(ASKED, now=0)), DONE)
    assert keys.begin(ASKED, now=KEPT) == DONE
    assert isinstance(keys.begin(ASKED, now=KEPT + 1), Begun)


def test_the_work_and_its_answer_are_kept_together_or_not_at_all(keys: Keys, either: Database, home: Path) -> None:
    store = JobStore(either, home)
    first = begun(keys.begin(ASKED, now=0))
    with pytest.raises(ZeroDivisionError), either.transaction():
        store.create(a_spec())
        assert keys.finish(first, DONE)
        raise ZeroDivisionError
    assert store.list().items == ()
    assert isinstance(keys.begin(ASKED, now=1), InProgress)
    second = begun(keys.begin(ASKED, now=LEASE))
    with either.transaction():
        store.create(a_spec())
        assert keys.finish(second, DONE)
    assert len(store.list().items) == 1
    assert keys.begin(ASKED, now=LEASE + 1) == DONE


def test_of_many_requests_at_a_time_one_is_done(either: Database, home: Path) -> None:
    store = JobStore(either, home)
    together = threading.Barrier(8)

    def send(number: int) -> str:
        keys = Keys(either)
        together.wait()
        found = keys.begin(ASKED)
        if isinstance(found, Begun):
            with either.transaction():
                store.create(a_spec(name=f"job-{number}"))
                assert keys.finish(found, DONE)
        return type(found).__name__

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(send, range(8)))
    assert found.count("Begun") == 1
    assert set(found) <= {"Begun", "InProgress", "Answer"}
    assert len(store.list().items) == 1
