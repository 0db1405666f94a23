"""Many follow streams that grow: each is told everything once, at one look for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from api.eventstream import HEARTBEAT, STOPPING, Item
from api.followers import PAGE, Followers, Head
from api.problems import Problem

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


class Growing:
    """Streams in memory; counts how often it is asked."""

    def __init__(self) -> None:
        self.items: dict[str, list[int]] = {}
        self.ended: set[str] = set()
        self.away = False
        self.looks = 0
        self.reads: list[tuple[str, int]] = []

    def heads(self, keys: Sequence[str]) -> Mapping[str, Head]:
        self.looks += 1
        if self.away:
            raise ConnectionError
        return {
            key: Head(self.items[key][-1] if self.items[key] else 0, {"state": "done"} if key in self.ended else None)
            for key in keys
        }

    def read(self, key: str, after: int, limit: int) -> Sequence[Item]:
        self.reads.append((key, after))
        return [Item(number, {"n": number}) for number in self.items[key] if number > after][:limit]


def numbers(text: bytes) -> list[int]:
    return [int(line[4:]) for line in text.decode().splitlines() if line.startswith("id: ")]


async def everything(followers: Followers[str], key: str, after: int = 0) -> bytes:
    return b"".join([frame async for frame in followers.frames(key, after)])


async def until(condition: object) -> None:
    while not condition():  # type: ignore[operator]
        await asyncio.sleep(0.01)


async def test_a_stream_is_told_from_the_place_that_was_asked_for_to_its_end() -> None:
    source = Growing()
    source.items["a"] = list(range(1, 3 * PAGE))
    source.ended.add("a")
    followers = Followers(source, limit=10, interval=0.01, heartbeat=60)
    for after in (0, 1, PAGE, 3 * PAGE - 1):
        text = await everything(followers, "a", after)
        assert numbers(text) == list(range(after + 1, 3 * PAGE))
        assert text.startswith(b"retry: 1000\n\n") and text.endswith(b'event: end\ndata: {"state":"done"}\n\n')
    followers.close()


async def test_five_hundred_followers_are_told_the_same_at_one_look_and_one_read_for_all_of_them() -> None:
    source = Growing()
    source.items["a"] = [1, 2, 3]
    followers = Followers(source, limit=500, interval=0.05, heartbeat=60)
    tasks = [asyncio.create_task(everything(followers, "a")) for _ in range(500)]
    await until(lambda: source.reads)
    for number in range(4, 10):
        looks = source.looks
        source.items["a"].append(number)
        await until(lambda seen=looks: source.looks > seen + 1)
    source.ended.add("a")
    texts = await asyncio.gather(*tasks)
    assert {tuple(numbers(text)) for text in texts} == {tuple(range(1, 10))}
    assert len(source.reads) <= 30, "followers read for themselves"
    followers.close()


async def test_streams_of_many_jobs_are_looked_at_together() -> None:
    source = Growing()
    names = [f"job-{number}" for number in range(100)]
    source.items = {name: [1] for name in names}
    followers = Followers(source, limit=100, interval=0.05, heartbeat=60)
    tasks = [asyncio.create_task(everything(followers, name)) for name in names]
    await until(lambda: len({name for name, _ in source.reads}) == 100)
    before = source.looks
    source.ended.update(names)
    await asyncio.gather(*tasks)
    assert source.looks <= before + 3
    followers.close()


async def test_silence_is_broken_by_comments_and_looks_end_with_the_last_follower() -> None:
    source = Growing()
    source.items["a"] = []
    followers = Followers(source, limit=1, interval=0.01, heartbeat=0.02)
    stream = followers.frames("a", 0)
    assert [await anext(stream) for _ in range(3)] == [b"retry: 1000\n\n", HEARTBEAT, HEARTBEAT]
    with pytest.raises(Problem, match="1 streams are followed already"):
        followers.check_room()
    await stream.aclose()
    followers.check_room()
    await asyncio.sleep(0.05)
    looks = source.looks
    await asyncio.sleep(0.1)
    assert source.looks == looks
    followers.close()


async def test_followers_wait_while_the_database_is_away() -> None:
    source = Growing()
    source.items["a"] = [1]
    followers = Followers(source, limit=1, interval=0.01, heartbeat=60)
    task = asyncio.create_task(everything(followers, "a"))
    await until(lambda: source.looks > 1)
    source.away = True
    looks = source.looks
    await until(lambda: source.looks > looks + 2)
    source.items["a"].append(2)
    source.ended.add("a")
    source.away = False
    assert numbers(await task) == [1, 2]
    followers.close()


async def test_a_server_that_stops_ends_streams_without_an_end_so_that_clients_come_again() -> None:
    source = Growing()
    source.items["a"] = [1]
    followers = Followers(source, limit=1, interval=0.01, heartbeat=60)
    task = asyncio.create_task(everything(followers, "a"))
    await until(lambda: source.looks > 1)
    followers.stop()
    told = await task
    assert b"event: end" not in told and told.endswith(STOPPING)
    with pytest.raises(Problem, match="stopping"):
        followers.check_room()
    followers.close()


async def test_a_look_is_taken_after_the_interval_or_at_once_for_a_new_stream() -> None:
    source = Growing()
    source.items = {"a": [], "b": []}
    followers = Followers(source, limit=3, interval=3600, heartbeat=3600)
    streams = [asyncio.create_task(everything(followers, key)) for key in ("a", "a")]
    await until(lambda: source.looks == 1)
    await asyncio.sleep(0.05)
    assert source.looks == 1
    source.ended.update("ab")
    streams.append(asyncio.create_task(everything(followers, "b")))
    await asyncio.gather(*streams)
    assert source.looks == 2
    followers.close()
