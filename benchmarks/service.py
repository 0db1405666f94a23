"""The service of jobs: submit to first step beside plain Ray Jobs, the list of many jobs, many followers.

    PYTHONPATH=. python benchmarks/service.py submit [repetitions]     # starts a real Ray
    PYTHONPATH=. python benchmarks/service.py list [jobs]
    PYTHONPATH=. python benchmarks/service.py followers [followers]

`submit`: the same spec goes to `raydml serve`, and to the same Ray as a script that calls `raydml.train`, by turns;
time from before the request to the time that the first line of the run's metrics bears. Ray and data are warm.
`list`: pages of 100 of so many jobs over HTTP, plain and filtered. `followers`: so many event streams of one job on one
process; time from the write of an event to its arrival at each. Of both, CPU milliseconds of the process that answers.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import httpx2

from raydml.jobs.changes import add_event
from raydml.jobs.database import Database
from raydml.jobs.store import JobStore
from raydml.jobs.tables import JobRow
from tests.jobs.house import House, tiny_spec

REPETITIONS = 50
EVENTS = 10
AT_ONCE = 32  # streams that are opened; a server answers 429 to more than it lets wait
SCRIPT = "import json, os, sys, raydml; raydml.train(json.load(open(sys.argv[1])), address=os.environ['RAY_ADDRESS'])"


def first_step(run: Path) -> float:
    """When the first step was logged, in seconds since 1970; waits for it."""
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or b"\n" not in metrics.read_bytes():
        time.sleep(0.05)
    return float(json.loads(metrics.read_text().splitlines()[0])["time"])


def by_service(house: House, number: int) -> float:
    """Seconds from the request to the first step."""
    began = time.time()
    job = house.submit(tiny_spec(house.home, f"service-{number}"))
    seconds = first_step(house.home / "runs" / job) - began
    house.wait(job, lambda: False, "ends")
    return seconds


def by_ray(house: House, number: int) -> float:
    """The same by `ray job submit` of a script."""
    home = house.home / "plain"
    spec = home / f"plain-{number}.json"
    spec.parent.mkdir(exist_ok=True)
    spec.write_text(json.dumps(tiny_spec(house.home, f"plain-{number}")))
    url = house.ray.url()
    assert url is not None
    headers = {"Authorization": f"Bearer {house.ray.token}"}
    with httpx2.Client(base_url=url, headers=headers, timeout=60) as client:
        body = {
            "entrypoint": shlex.join([sys.executable, "-c", SCRIPT, str(spec)]),
            "runtime_env": {"env_vars": {"RAYDML_HOME": str(home)}},
        }
        began = time.time()
        job = client.post("/api/jobs/", json=body).raise_for_status().json()["submission_id"]
        seconds = first_step(home / "runs" / f"plain-{number}") - began
        while client.get(f"/api/jobs/{job}").json()["status"] in ("PENDING", "RUNNING"):
            time.sleep(0.2)
    return seconds


def submit(home: Path, repetitions: int) -> None:
    """Medians of both, by turns."""
    with House(home) as house:
        by_service(house, -1)  # starts Ray
        taken: dict[str, list[float]] = {"service": [], "plain": []}
        for number in range(repetitions):
            taken["service"].append(by_service(house, number))
            taken["plain"].append(by_ray(house, number))
    service, plain = median(taken["service"]), median(taken["plain"])
    print(f"submit to first step: service {service:.2f} s, plain {plain:.2f} s, overhead {service - plain:+.2f} s")
    print({name: [round(each, 2) for each in seconds] for name, seconds in taken.items()})


def filled(home: Path, count: int) -> JobStore:
    """A store with so many jobs."""
    store = JobStore(Database.at(home), home)
    first = store.create(tiny_spec(home))
    columns = [column.name for column in JobRow.__table__.columns if column.name != "id"]
    listed = ", ".join(columns)
    with store.database.transaction() as session:
        connection = session.connection()
        for number in range(count - 1):
            id = f"{first.id[:-8]}{number:08d}"
            connection.exec_driver_sql(f"INSERT INTO jobs (id, {listed}) SELECT '{id}', {listed} FROM jobs LIMIT 1")
            connection.exec_driver_sql(f"INSERT INTO job_labels VALUES ('{id}', 'tenth', '{number % 10}')")
        connection.exec_driver_sql("UPDATE jobs SET state = 'paused', desired = 'pause'")  # nobody is to start them
    return store


def spent(house: House) -> float:
    """Seconds of CPU that the process that answers took so far."""
    fields = Path(f"/proc/{house.pids('api')[0]}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def timed(work: Callable[[], Any]) -> float:
    """Median of milliseconds."""
    taken = []
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - began))
    return median(taken)


def listing(home: Path, count: int) -> None:
    """Medians of a page of 100, over HTTP."""
    store = filled(home, count)
    middle = store.list(limit=1000).next
    print(f"list of {count} jobs, pages of 100; in process: {timed(lambda: store.list(limit=100)):.1f} ms")
    print(f"  behind the thousandth: {timed(lambda: store.list(limit=100, after=middle)):.1f} ms")
    with House(home) as house, httpx2.Client(base_url=house.url, timeout=60) as client:
        for name, query in {
            "newest": {},
            "paused": {"state": "paused"},
            "a tenth by label": {"label": "tenth:3"},
        }.items():

            def ask(query: dict[str, str] = query) -> httpx2.Response:
                return client.get("/v1/jobs", params={"limit": "100", **query})

            assert len(ask().json()["items"]) == 100
            before = spent(house)
            took = timed(ask)
            print(f"  over HTTP, {name}: {took:.1f} ms, {1000 * (spent(house) - before) / REPETITIONS:.1f} CPU-ms")


def followers(home: Path, count: int) -> None:
    """How late each of so many streams tells of an event."""
    store = filled(home, 2)
    job = store.list().items[0].id
    with House(home) as house:
        asyncio.run(follow_all(store, job, house, count))


async def follow_all(store: JobStore, job: str, house: House, count: int) -> None:
    """Open all streams, write events, and time their arrivals."""
    arrivals: dict[int, list[float]] = {}
    opening, opened = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(0)

    async def follow(client: httpx2.AsyncClient) -> None:
        headers = {"Accept": "text/event-stream"}
        await opening.acquire()
        async with client.stream("GET", f"/v1/jobs/{job}/events", params={"after": 1}, headers=headers) as answer:
            assert answer.status_code == 200, answer
            opening.release()
            opened.release()
            async for line in answer.aiter_lines():
                if line.startswith("id:"):
                    arrivals.setdefault(int(line.removeprefix("id:")), []).append(time.perf_counter())

    limits = httpx2.Limits(max_connections=count + 10)
    async with httpx2.AsyncClient(base_url=house.url, timeout=600, limits=limits) as client:
        began = time.perf_counter()
        tasks = [asyncio.create_task(follow(client)) for _ in range(count)]
        for _ in tasks:
            await opened.acquire()
            assert not any(task.done() for task in tasks), "a stream ended"
        print(f"{count} streams opened in {time.perf_counter() - began:.1f} s")
        late, before = [], spent(house)
        for _ in range(EVENTS):
            await asyncio.sleep(1)
            written = time.perf_counter()
            number = await asyncio.to_thread(write_event, store, job)
            while len(arrivals.get(number, [])) < count:
                await asyncio.sleep(0.05)
            late += [1000 * (each - written) for each in arrivals[number]]
        cost = 1000 * (spent(house) - before) / EVENTS
        for task in tasks:
            task.cancel()
        late.sort()
        print(f"event to arrival: median {median(late):.0f} ms, 99 % {late[int(0.99 * len(late))]:.0f} ms")
        print(f"{cost:.0f} CPU-ms of the process that answers an event")


def write_event(store: JobStore, job: str) -> int:
    """One more event of the job; its number."""
    with store.database.transaction() as session:
        row = session.get(JobRow, job)
        assert row is not None
        add_event(session, row, "watch", {"step": 0, "message": "something"}, 1)
        return row.last_event


def main() -> None:
    """As the module says."""
    what = sys.argv[1] if len(sys.argv) > 1 else "list"
    number = int(sys.argv[2]) if len(sys.argv) > 2 else {"submit": 3, "list": 10_000, "followers": 500}[what]
    load = os.getloadavg()[0]
    print(
        f"ray {version('ray')}, SQLAlchemy {version('sqlalchemy')}, {os.cpu_count()} CPUs, load {load:.1f}", flush=True
    )
    with tempfile.TemporaryDirectory(prefix="raydml-bench-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        {"submit": submit, "list": listing, "followers": followers}[what](Path(folder), number)


if __name__ == "__main__":
    main()
