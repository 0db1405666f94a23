"""Searches of many requests -> few calls of Faiss, in one thread: each takes whatever queued while the last one ran.

No timer: a lone request is searched at once. Exact hits do not depend on the batch (`search.nearest`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from api.tasks import busy
from raydml.search import Collection, Hit
from raydml.search.items import Array, Filter, Id

TURNS = 3  # of the event loop before a batch is taken: what sockets hold already becomes part of it
Hits = list[list[Hit]]


@dataclass(frozen=True, eq=False)
class Search:
    """Checked queries (n, dimension), or the ids of items, and what is asked of each of them."""

    collection: Collection
    queries: Array | None
    ids: list[Id] | None
    k: int
    filter: Filter | None = None
    options: tuple[tuple[str, Any], ...] = ()  # further keywords of Collection.search

    @property
    def kind(self) -> tuple[Any, ...]:
        """Searches of one kind are answered together; one by id alone, as an unknown id would refuse the others."""
        alone = 0 if self.ids is None else id(self)
        return id(self.collection), alone, self.k, orjson.dumps(self.filter, option=orjson.OPT_SORT_KEYS), self.options

    def __len__(self) -> int:
        return len(self.ids if self.queries is None else self.queries)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Waiting:
    """A search in the queue."""

    search: Search
    kind: tuple[Any, ...]
    answer: asyncio.Future[Hits]


class Searches:
    """The queue and its thread; used on one event loop."""

    def __init__(self, max_waiting: int, max_batch: int) -> None:
        self.calls = 0
        self.queries = 0
        self._max_waiting = max_waiting
        self._max_batch = max_batch
        self._queue: deque[Waiting] = deque()
        self.waiting = 0
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="raydml-search")

    async def run(self, search: Search) -> Hits:
        """The hits of each query. Raises Problem 429 where the queue is full."""
        if self.waiting and self.waiting + len(search) > self._max_waiting:
            raise busy(f"{self.waiting} queries are waiting already")
        answer: asyncio.Future[Hits] = asyncio.get_running_loop().create_future()
        self._queue.append(Waiting(search, search.kind, answer))
        self.waiting += len(search)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await answer

    def close(self) -> None:
        """Wait for the search that is running."""
        self._thread.shutdown(wait=True)

    async def _work(self) -> None:
        """Until the queue is empty."""
        loop = asyncio.get_running_loop()
        while self._queue:
            for _ in range(TURNS):
                await asyncio.sleep(0)
            if not (batch := self._take()):
                continue  # all given up by their clients
            self.calls += 1
            self.queries += sum(len(each.search) for each in batch)
            try:
                answers = await loop.run_in_executor(self._thread, _answer, [each.search for each in batch])
            except Exception as error:
                for each in batch:
                    if not each.answer.done():
                        each.answer.set_exception(error)
            else:
                for each, hits in zip(batch, answers, strict=True):
                    if not each.answer.done():
                        each.answer.set_result(hits)
        self._worker = None

    def _take(self) -> list[Waiting]:
        """The first in the queue, and others of its kind, up to a batch; the rest stays in order."""
        taken: list[Waiting] = []
        count = 0
        left: deque[Waiting] = deque()
        while self._queue:
            first = self._queue.popleft()
            size = len(first.search)
            if first.answer.done():  # given up by its client
                self.waiting -= size
            elif taken and (first.kind != taken[0].kind or count + size > self._max_batch):
                left.append(first)
            else:
                taken.append(first)
                count += size
                self.waiting -= size
        self._queue = left
        return taken


def _answer(searches: Sequence[Search]) -> list[Hits]:
    """The hits of each search, all of one kind; in the thread."""
    first = searches[0]
    if first.ids is not None:
        given: dict[str, Any] = {"ids": first.ids}
    else:
        given = {"vectors": np.concatenate([search.queries for search in searches if search.queries is not None])}
    hits = iter(first.collection.search(**given, k=first.k, filter=first.filter, **dict(first.options)))
    return [[next(hits) for _ in range(len(search))] for search in searches]
