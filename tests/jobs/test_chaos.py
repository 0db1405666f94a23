"""`kill -9` of everything that serves jobs, at random: what was acknowledged reaches one end, with the same bits."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from raydml.jobs.states import TERMINAL
from tests.jobs.house import House, tiny_spec

WHOM = ("api", "supervisor", "keeper", "driver", "head", "raylet")


@pytest.fixture
def near() -> Iterator[Path]:
    """A folder with a short path: Ray's sockets are named after it."""
    with tempfile.TemporaryDirectory(prefix="raydml-house-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def undisturbed(home: Path) -> str:
    """SHA-256 of the model that the spec gives when nobody is killed."""
    with House(home) as house:
        job = house.submit(tiny_spec(home))
        house.wait(job, lambda: False, "ends")
        found = house.ask("GET", f"/v1/jobs/{job}").json()
        assert house.states(job) == ["queued", "starting", "running", "succeeded"], house.followed[job]
        return str(found["result"]["model_sha256"])


def disturbed(home: Path, rounds: int, seed: int, victims: tuple[str, ...]) -> tuple[set[str], Counter[str]]:
    """SHA-256 of all models after that many kills, and how often who was killed."""
    draw, kills = random.Random(seed), Counter[str]()
    with House(home, "--set", "job_retries=1000") as house:
        for number in range(10 * rounds):
            if kills.total() == rounds:
                break
            live = [job for job in house.followed if not house.over(job)]
            if len(live) < 2:
                live.append(house.submit(tiny_spec(home, f"tiny-{number}"), labels={"round": str(number)}))
            known = {job: house.seen(job, "checkpoint") for job in live}
            if draw.random() < 0.6:
                first = live[0]
                house.wait(first, lambda: house.seen(first, "checkpoint") > known[first], "leaves a checkpoint")  # noqa: B023
            else:
                house.follow()
            whom = victims[kills.total()] if rounds <= len(victims) else draw.choice(victims)
            if house.kill(whom):
                kills[whom] += 1
                print(f"kill {kills.total()} of {rounds}: {whom}; {len(house.followed)} jobs", flush=True)
        for job in house.followed:
            house.wait(job, lambda: False, "ends")
        house.follow()
        digests = set()
        for job, events in house.followed.items():
            found = house.ask("GET", f"/v1/jobs/{job}").json()
            assert sum(state in TERMINAL for state in house.states(job)) == 1, events
            assert found["state"] == "succeeded", (found["state"], found["reason"], house.states(job))
            digests.add(found["result"]["model_sha256"])
        listed = {each["id"] for each in house.ask("GET", "/v1/jobs", params={"limit": 500}).json()["items"]}
        assert listed == set(house.followed), "one job for each that was acknowledged, and no other"
        return digests, kills


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_one_kill_of_each_process_loses_nothing_and_leaves_the_same_bits(near: Path) -> None:
    expected = undisturbed(near / "calm")
    digests, kills = disturbed(near / "wild", len(WHOM), 1, WHOM)
    assert digests == {expected}
    assert set(kills) == set(WHOM)


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(24 * 3600)
def test_sixty_kills_at_random_lose_nothing_and_leave_the_same_bits(near: Path) -> None:
    expected = undisturbed(near / "calm")
    digests, kills = disturbed(near / "wild", 60, 2, WHOM)
    print(f"{kills.total()} kills: {dict(kills)}")
    assert digests == {expected}
