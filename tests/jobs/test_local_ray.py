"""A real Ray of a server's own: it asks for a token, outlives who started it, and is started anew where part dies."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from raydml.jobs import marked
from raydml.jobs.launcher import Launch, Unreachable
from raydml.jobs.local_ray import VITAL, LocalRay
from raydml.jobs.ray_jobs import LocalJobs
from raydml.jobs.workplace import Workplace

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture
def near() -> Iterator[Path]:
    """A folder with a short path: Ray's sockets are named after it."""
    with tempfile.TemporaryDirectory(prefix="raydml-ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def vital(ray: LocalRay) -> dict[str, int]:
    found = [
        (part, each.pid) for part in VITAL for each in marked.bearing(ray.mark) if part in " ".join(each.arguments)
    ]
    return dict(found)


def test_a_ray_is_adopted_asks_for_its_token_runs_attempts_once_and_comes_back(near: Path) -> None:
    ray, jobs = LocalRay(near, 1), LocalJobs(LocalRay(near, 1))
    assert ray.url() is None
    with pytest.raises(Unreachable, match="Ray is not running"):
        jobs.look()
    try:
        jobs.mend()
        url = ray.url()
        assert url is not None and ray.ensure() == url, "what lives is adopted"
        assert httpx2.get(f"{url}/api/jobs/").status_code == 401
        assert (near / "ray" / "token").stat().st_mode & 0o777 == 0o600
        assert (jobs.look().processes, jobs.look().cpus) == ({}, 1.0)
        place = Workplace(near, "job_x", 1)
        place.write_order({}, 1, near / "collections")  # no spec: the attempt says so and ends
        for _ in range(2):
            submit(jobs, Launch("job_x-a1", "job_x", 1))
        while jobs.look().processes != {"job_x-a1": "gone"}:
            time.sleep(0.2)
        ended = place.ended()
        assert ended is not None and (ended["outcome"], ended["kind"]) == ("failed", "SpecError")
        assert place.output.read_text().count("Traceback") == 1, "submitted twice, it ran once"

        before = vital(ray)
        assert set(before) == set(VITAL)
        os.kill(before["raylet/raylet"], signal.SIGKILL)
        while ray.url() is not None:
            time.sleep(0.1)
        with pytest.raises(Unreachable):
            jobs.submit(Launch("job_x-a2", "job_x", 2))
        jobs.mend()
        assert not set(before.values()) & set(vital(ray).values()), "nothing of the old one is left"
        assert jobs.look().processes == {}
    finally:
        ray.end()
        jobs.close()
    assert list(marked.bearing(ray.mark, ray._scratch)) == [], "nor what hides its environment"


def test_its_scratch_folder_goes_though_the_dying_still_write_into_it(near: Path) -> None:
    ray = LocalRay(near, 1)
    ray._scratch.mkdir(0o700)
    written = threading.Event()

    def dying() -> None:
        with contextlib.suppress(OSError):  # until the folder is gone
            for number in range(2000):
                (ray._scratch / str(number)).mkdir()
                written.set()

    thread = threading.Thread(target=dying)
    thread.start()
    written.wait()
    ray.end()
    thread.join()
    assert not ray._scratch.exists()


def submit(jobs: LocalJobs, launch: Launch) -> None:
    """As the supervisor does: again, until it is done."""
    while True:
        try:
            return jobs.submit(launch)
        except Unreachable:
            time.sleep(0.2)
