"""Concurrent searches share calls of Faiss, get what each would get alone, and are refused where too many wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api.problems import Problem
from api.searches import Hits, Search, Searches
from api.service import Service
from api.tasks import Tasks
from raydml.errors import CollectionError
from raydml.jobs.callers import LOCAL
from raydml.search import Collection
from tests.api.conftest import Connect

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
RANDOM = np.random.default_rng(0)
VECTORS = RANDOM.standard_normal((300, 8)).astype(np.float32)


class Gate:
    """A real collection whose searches wait for a gate, and are written down: the number of queries of each."""

    def __init__(self, collection: Collection) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.calls: list[int] = []
        self._search = collection.search
        collection.search = self  # type: ignore[method-assign, assignment]

    def __call__(self, vectors: Any = None, **options: Any) -> Hits:
        self.calls.append(len(options["ids"] if vectors is None else vectors))
        self.entered.set()
        assert self.open.wait(50)
        return self._search(vectors, **options)


@pytest.fixture
def collection(home: Path) -> Iterator[Collection]:
    with Collection.open(home / "collections" / "c", 8) as opened:
        opened.upsert(range(300), VECTORS, [{"even": row % 2 == 0} for row in range(300)])
        yield opened


@pytest.fixture
def searches() -> Iterator[Searches]:
    queue = Searches(max_waiting=20, max_batch=8)
    yield queue
    queue.close()


def question(collection: Collection, queries: Any, k: int = 5, filter: Any = None, ids: Any = None) -> Search:
    return Search(collection, queries, ids, k, filter)


async def entered(gate: Gate) -> None:
    while not gate.entered.is_set():
        await asyncio.sleep(0.001)


async def test_hits_are_those_that_each_would_get_alone(collection: Collection) -> None:
    queue = Searches(max_waiting=1000, max_batch=16)
    asked = []
    for number in range(60):
        queries = RANDOM.standard_normal((1 + number % 3, 8)).astype(np.float32)
        filter = {"even": True} if number % 4 == 0 else None
        ids = [number] if number % 10 == 0 else None
        asked.append(question(collection, None if ids else queries, 3 + number % 2, filter, ids))
    together = await asyncio.gather(*map(queue.run, asked))
    for each, hits in zip(asked, together, strict=True):
        given: Any = {"ids": each.ids} if each.ids else {"vectors": each.queries}
        assert hits == collection.search(**given, k=each.k, filter=each.filter)
    assert queue.calls < 30
    assert queue.queries == sum(map(len, asked))
    queue.close()


async def test_what_queued_while_one_ran_is_one_call_up_to_a_batch(collection: Collection, searches: Searches) -> None:
    gate = Gate(collection)
    first = asyncio.create_task(searches.run(question(collection, VECTORS[:1])))
    await entered(gate)
    others = [asyncio.create_task(searches.run(question(collection, VECTORS[row : row + 1]))) for row in range(1, 12)]
    await asyncio.sleep(0)
    gate.open.set()
    hits = await asyncio.gather(first, *others)
    assert gate.calls == [1, 8, 3]
    assert [each[0][0].id for each in hits] == list(range(12))


async def test_what_arrives_within_a_turn_of_the_loop_is_one_call(collection: Collection, searches: Searches) -> None:
    gate = Gate(collection)
    gate.open.set()

    async def later(turns: int) -> Hits:
        for _ in range(turns):
            await asyncio.sleep(0)
        return await searches.run(question(collection, VECTORS[:1]))

    await asyncio.gather(*map(later, (0, 1, 2)))
    assert gate.calls == [3]


async def test_other_questions_wait_for_a_call_of_their_own_in_their_order(
    collection: Collection, searches: Searches
) -> None:
    gate = Gate(collection)
    gate.open.set()
    asked = [
        question(collection, VECTORS[:1], 5), question(collection, VECTORS[:2], 6),
        question(collection, VECTORS[:3], 5),
        question(collection, VECTORS[:1], 5, {"even": True}), question(collection, None, 5, None, [1]),
        question(collection, None, 5, None, [2]),
    ]  # fmt: skip
    await asyncio.gather(*map(searches.run, asked))
    assert gate.calls == [4, 2, 1, 1, 1]


async def test_a_full_queue_refuses_and_a_lone_large_search_is_taken(
    collection: Collection, searches: Searches
) -> None:
    gate = Gate(collection)
    first = asyncio.create_task(searches.run(question(collection, VECTORS[:50])))
    await entered(gate)
    second = asyncio.create_task(searches.run(question(collection, VECTORS[:20])))
    await asyncio.sleep(0)
    with pytest.raises(Problem, match="20 queries are waiting already") as refused:
        await searches.run(question(collection, VECTORS[:1]))
    gate.open.set()
    assert (refused.value.status_code, refused.value.headers) == (429, {"Retry-After": "1"})
    assert [len(await each) for each in (first, second)] == [50, 20]
    assert len(await searches.run(question(collection, VECTORS[:1]))) == 1


async def test_a_search_that_its_client_gave_up_is_not_searched(collection: Collection, searches: Searches) -> None:
    gate = Gate(collection)
    first = asyncio.create_task(searches.run(question(collection, VECTORS[:1])))
    await entered(gate)
    given_up = asyncio.create_task(searches.run(question(collection, VECTORS[:7])))
    kept = asyncio.create_task(searches.run(question(collection, VECTORS[:2])))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.sleep(0)
    gate.open.set()
    await asyncio.gather(first, kept)
    assert gate.calls == [1, 2]
    alone = asyncio.create_task(searches.run(question(collection, VECTORS[:3])))
    await asyncio.sleep(0)
    alone.cancel()
    assert len(await searches.run(question(collection, VECTORS[:4]))) == 4
    assert gate.calls == [1, 2, 4]


async def test_an_error_reaches_who_asked_and_the_queue_goes_on(collection: Collection, searches: Searches) -> None:
    asked = [question(collection, VECTORS[:1], filter={"a": {"near": 1}}), question(collection, VECTORS[:1])]
    wrong, right = await asyncio.gather(*map(searches.run, asked), return_exceptions=True)
    assert isinstance(wrong, CollectionError)
    assert isinstance(right, list) and right[0][0].id == 0


async def test_tasks_beyond_the_limit_are_refused_and_not_begun() -> None:
    tasks, gate, begun = Tasks(limit=3, threads=1), threading.Event(), []

    def work() -> None:
        begun.append(1)
        assert gate.wait(50)

    waiting = [asyncio.create_task(tasks.run(work)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Problem, match="3 tasks are waiting already"):
        await tasks.run(work)
    gate.set()
    await asyncio.gather(*waiting)
    await tasks.run(work)
    tasks.close()
    assert len(begun) == 4


async def test_over_http_a_full_queue_is_429_with_retry_after_and_then_answers_again(
    connect: Connect, collection: Collection
) -> None:
    apps: list[Any] = []
    url, body = "/v1/collections/c/search", {"vectors": VECTORS[:4].tolist(), "k": 1}
    async with connect(apps.append, max_waiting_queries=8) as client:
        service: Service = apps[0].state.service
        gate = Gate(await service.collection(service.store_of(LOCAL), "c"))
        first = asyncio.create_task(client.post(url, json=body))
        await entered(gate)
        waiting = [asyncio.create_task(client.post(url, json=body)) for _ in range(6)]
        while sum(task.done() for task in waiting) < 4:  # whichever of them came first
            await asyncio.sleep(0.001)
        refused = [task.result() for task in waiting if task.done()]
        gate.open.set()
        answers = await asyncio.gather(first, *waiting)
        after = await client.post(url, json=body)
    assert len(refused) == 4
    assert {(each.headers["retry-after"], each.json()["type"]) for each in refused} == {
        ("1", "urn:raydml:problem:busy")
    }
    assert sorted(each.status_code for each in answers) == [200] * 3 + [429] * 4
    assert (after.status_code, gate.calls) == (200, [4, 8, 4])
