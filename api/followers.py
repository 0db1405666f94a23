"""Streams that grow -> any number of followers, at one look at the database for all of them together.

A look tells how far each stream is; what came is read once for all followers that stand at the same place, and those
that have come to the end do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import structlog

from api.eventstream import HEARTBEAT, STOPPING, Item, end, opening
from api.problems import Problem
from api.tasks import busy

log = structlog.get_logger()
Key = TypeVar("Key", bound=Hashable)
PAGE = 500  # items read at a time
KEPT = 8  # newest pages of a stream that are held for its followers
AGAIN = 1.0  # seconds after which a client that was cut off comes again


@dataclass(frozen=True)
class Head:
    """How far a stream is: the id of its last item; what its end says, None while more may come.

    Of items that are kept, `first` has the smallest id: those before it have expired.
    """

    last: int
    end: Mapping[str, Any] | None
    first: int = 1


@dataclass(frozen=True)
class Read:
    """Some items of a stream as frames, and the id of the last one."""

    last: int
    frames: bytes


class Source(Protocol[Key]):
    """Where streams are read; called in threads."""

    def heads(self, keys: Sequence[Key]) -> Mapping[Key, Head]:
        """How far each is, in one look."""

    def read(self, key: Key, after: int, limit: int) -> Sequence[Item]:
        """The next items behind an id."""


class _Topic:
    """One stream that somebody follows."""

    def __init__(self) -> None:
        self.followers = 0
        self.head: Head | None = None  # nobody has looked yet
        self.changed = asyncio.Event()
        self.pages: dict[int, asyncio.Future[Read | None]] = {}  # by the id that they begin behind

    def take(self, head: Head) -> None:
        """What a look found."""
        if head != self.head:
            self.head = head
            self.wake()

    def wake(self) -> None:
        """Let all followers look."""
        self.changed.set()
        self.changed = asyncio.Event()


class Followers(Generic[Key]):
    """All followers of one process; `limit` of them at a time, `interval` seconds between two looks."""

    def __init__(self, source: Source[Key], limit: int, interval: float, heartbeat: float) -> None:
        self._source = source
        self._limit = limit
        self._interval = interval
        self._heartbeat = heartbeat
        self._topics: dict[Key, _Topic] = {}
        self._watching: asyncio.Task[None] | None = None
        self._look_now = asyncio.Event()
        self._stopping = False
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="raydml-followers")
        self.looks = 0
        self.reads = 0

    def check_room(self) -> None:
        """Raises Problem 429 where as many follow as may, 503 where the server is stopping."""
        if self._stopping:
            raise Problem(503, "stopping", "the server is stopping: ask again", headers={"Retry-After": "1"})
        if (count := sum(topic.followers for topic in self._topics.values())) >= self._limit:
            raise busy(f"{count} streams are followed already")

    async def frames(self, key: Key, after: int) -> AsyncGenerator[bytes]:
        """Everything behind an id, as it comes; ends with the stream, or when the server stops, which it says."""
        topic = self._join(key)
        try:
            yield opening(AGAIN)
            while not self._stopping:
                changed, head = topic.changed, topic.head
                more = head is None or head.last > after
                read = await self._page(topic, key, after) if more else None
                if read is not None:
                    after = read.last
                    yield read.frames
                elif head is not None and head.end is not None:
                    yield end(head.end)
                    return
                else:
                    try:
                        await asyncio.wait_for(changed.wait(), self._heartbeat)
                    except TimeoutError:
                        yield HEARTBEAT
            yield STOPPING
        finally:
            self._leave(key, topic)

    def stop(self) -> None:
        """Let all streams end at the next look, so that the server can; from a signal's handler, too."""
        self._stopping = True

    def close(self) -> None:
        """Nobody follows any more."""
        self._stopping = True
        self._threads.shutdown(wait=True)

    def _join(self, key: Key) -> _Topic:
        topic = self._topics.setdefault(key, _Topic())
        topic.followers += 1
        if topic.head is None:
            self._look_now.set()
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())
        return topic

    def _leave(self, key: Key, topic: _Topic) -> None:
        topic.followers -= 1
        if topic.followers == 0:
            del self._topics[key]
            if not self._topics:
                self._look_now.set()

    async def _page(self, topic: _Topic, key: Key, after: int) -> Read | None:
        """What comes behind an id; those who ask for the same share it. None where there is nothing yet."""
        if after not in topic.pages:
            loop = asyncio.get_running_loop()
            topic.pages[after] = loop.run_in_executor(self._threads, self._read, key, after)
            if len(topic.pages) > KEPT:
                del topic.pages[next(iter(topic.pages))]
        page = topic.pages[after]
        try:
            read = await asyncio.shield(page)
        except BaseException:
            topic.pages.pop(after, None)
            raise
        if read is None and topic.pages.get(after) is page:
            del topic.pages[after]
        return read

    def _read(self, key: Key, after: int) -> Read | None:
        self.reads += 1
        items = self._source.read(key, after, PAGE)
        return Read(items[-1].id, b"".join(item.frame() for item in items)) if items else None

    async def _watch(self) -> None:
        """Look at all streams again and again, while anybody follows one."""
        loop = asyncio.get_running_loop()
        while self._topics and not self._stopping:
            self._look_now.clear()
            topics = dict(self._topics)
            self.looks += 1
            try:
                heads = await loop.run_in_executor(self._threads, self._source.heads, list(topics))
            except Exception as error:  # of a database that is away: followers wait until it is back
                log.error("followers look in vain", exc_info=error)
                heads = {}
            for key, head in heads.items():
                topics[key].take(head)
            try:
                await asyncio.wait_for(self._look_now.wait(), self._interval)
            except TimeoutError:
                continue
        for topic in self._topics.values():
            topic.wake()
