"""`kill -9` of everything that serves jobs, at random: what was acknowledged reaches one end, with the same bits."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from raydml.jobs.states import TERMINAL
from tests.jobs.house import House, tiny_spec

ALL = ("api", "supervisor", "keeper", "driver", "head", "raylet")
PIECES = range(3)  # of twenty kills each: sixty in all, in pieces that may run apart
KILLS = Counter({"api": 5, "supervisor": 4, "keeper": 3, "driver": 4, "head": 2, "raylet": 2})  # of one piece
MOMENTS = ("now", "event", "checkpoint")  # of a kill: at once, after the next news, after the next checkpoint
HASTY = {"job_retries": 1000, "retry_seconds": 1, "lease_seconds": 2}  # settings under which nobody waits for long


@pytest.fixture(scope="module")
def expected() -> Iterator[str]:
    """SHA-256 of the model that the spec gives when nobody is killed."""
    with tempfile.TemporaryDirectory(prefix="raydml-house-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        with House(home) as house:
            job = house.submit(tiny_spec(home))
            house.wait(job, lambda: False, "ends")
            found = house.ask("GET", f"/v1/jobs/{job}").json()
            assert house.states(job) == ["queued", "starting", "running", "succeeded"], house.followed[job]
        yield str(found["result"]["model_sha256"])


@pytest.fixture
def near() -> Iterator[Path]:
    """A folder with a short path: Ray's sockets are named after it."""
    with tempfile.TemporaryDirectory(prefix="raydml-house-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


class Owner:
    """Has two jobs going at any time, and asks for the next one while its server may be killed."""

    def __init__(self, house: House) -> None:
        self._house, self._thread = house, ThreadPoolExecutor(1)
        self._number, self._asked = 0, Future[str]()
        self._asked.set_result("")

    def look(self) -> int:
        """Follow all jobs, and ask for another one where fewer than two go on; how many events there are."""
        known = self._house.follow()
        live = [job for job in list(self._house.followed) if not self._house.over(job)]
        if self._asked.done() and len(live) < 2:
            self._asked.result()
            self._number += 1
            self._asked = self._thread.submit(self._submit, self._number)
        return known

    def end(self) -> None:
        """Have the last request answered, and see every job to its end."""
        self._asked.result()
        self._thread.shutdown()
        for job in self._house.followed:
            self._house.wait(job, lambda: False, "ends")

    def _submit(self, number: int) -> str:
        workers = {"min": 1, "max": 1 + number % 2, "cpus": 0.5}  # of which the bits know nothing
        spec = tiny_spec(self._house.home, f"tiny-{number}", parallel={"workers": workers})
        return self._house.submit(spec, labels={"number": str(number)})


def disturbed(home: Path, victims: list[str], draw: random.Random) -> set[str]:
    """SHA-256 of all models after these were killed one after another, each at a moment that is drawn."""
    with House(home, *(word for name, value in HASTY.items() for word in ("--set", f"{name}={value}"))) as house:
        owner = Owner(house)
        for number, whom in enumerate(victims, start=1):
            strike(house, owner, whom, draw.choice(MOMENTS))
            print(f"kill {number} of {len(victims)}: {whom}; {len(house.followed)} jobs", flush=True)
        owner.end()
        digests = set()
        for job, events in house.followed.items():
            found = house.ask("GET", f"/v1/jobs/{job}").json()
            assert sum(state in TERMINAL for state in house.states(job)) == 1, events
            assert found["state"] == "succeeded", (found["state"], found["reason"], house.states(job))
            digests.add(found["result"]["model_sha256"])
        listed = [each["id"] for each in house.ask("GET", "/v1/jobs", params={"limit": 500}).json()["items"]]
        assert sorted(listed) == sorted(house.followed), "one job for each that was acknowledged, and no other"
        return digests


def strike(house: House, owner: Owner, whom: str, moment: str) -> None:
    """Kill the next process of this kind, once there is one, at the moment."""

    def checkpoints() -> int:
        return sum(house.seen(job, "checkpoint") for job in list(house.followed))

    def due() -> bool:
        known = owner.look()
        return {"now": True, "event": known > events, "checkpoint": checkpoints() > durable}[moment]

    def struck() -> bool:
        owner.look()
        return house.kill(whom)

    events, durable = owner.look(), checkpoints()
    house.until(due, f"there is the next {moment}")
    house.until(struck, f"there is a {whom}")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_one_kill_of_each_process_loses_nothing_and_leaves_the_same_bits(near: Path, expected: str) -> None:
    assert disturbed(near, list(ALL), random.Random(0)) == {expected}


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("piece", PIECES)
def test_sixty_kills_at_random_lose_nothing_and_leave_the_same_bits(near: Path, expected: str, piece: int) -> None:
    draw = random.Random(piece)
    victims = draw.sample(list(KILLS.elements()), KILLS.total())
    assert len(PIECES) * len(victims) == 60
    assert disturbed(near, victims, draw) == {expected}
