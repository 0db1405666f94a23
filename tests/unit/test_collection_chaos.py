"""kill -9 at random moments: what was acknowledged is there, what was deleted is not, and no alias is half switched.

One process forks a child for each round, which says in a file what it tries and what was acknowledged; it is killed
after a random time, and what is on the disk must be the state after the last acknowledged operation, or after the one
that was being tried.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydml.search import Collection
from raydml.search.aliases import Aliases

DIMENSION = 8
NAMES = 400
State = dict[str, Any]  # {"points": {id: version}, "aliases": {...}}


def vector(name: int, version: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng([name, version]).standard_normal(DIMENSION).astype(np.float32)


def after(state: State, operation: list[Any]) -> State:
    kind, *given = operation
    points, aliases = dict(state["points"]), dict(state["aliases"])
    if kind == "upsert":
        points |= {name: given[1] for name in given[0]}
    elif kind == "delete":
        points = {name: version for name, version in points.items() if name not in given[0]}
    elif kind == "switch":
        aliases = given[0]
    return {"points": points, "aliases": aliases}


def choose(random_: random.Random, version: int) -> list[Any]:
    kind = random_.choices(
        ["upsert", "delete", "seal", "compact", "switch", "snapshot"], weights=[50, 20, 10, 8, 8, 4]
    )[0]
    names = sorted(random_.sample(range(NAMES), random_.randint(1, 20)))
    other = random_.choice([["c", "d"], ["d", "c"]])
    given = {
        "upsert": [names, version],
        "delete": [names],
        "switch": [dict(zip(["now", "before"], other, strict=True))],
    }
    return [kind, *given.get(kind, [])]


def do(root: Path, collection: Collection, operation: list[Any]) -> None:
    kind, *given = operation
    if kind == "upsert":
        names, version = given
        payloads = [{"version": version, "even": name % 2 == 0} for name in names]
        collection.upsert(names, np.stack([vector(name, version) for name in names]), payloads)
    elif kind == "delete":
        collection.delete(given[0])
    elif kind == "seal":
        collection.seal()
    elif kind == "switch":
        Aliases(root).switch(given[0])
    elif kind == "snapshot":
        collection.snapshot(root / "snapshots" / f"{os.getpid()}-{time.monotonic_ns()}")
    else:
        from raydml.search import compaction

        compaction.compact(collection.path)


def child(root: Path, seed: int) -> None:
    random_ = random.Random(seed)
    log = os.open(root / f"log-{seed}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    collection = Collection.open(root / "c")
    for number in range(1_000_000):
        operation = choose(random_, 1000 * seed + number)
        os.write(log, json.dumps(["try", operation]).encode() + b"\n")
        do(root, collection, operation)
        os.write(log, json.dumps(["done", operation]).encode() + b"\n")


def mother(root: Path) -> None:
    """For each number on stdin, fork a child of this seed and say its process id; children end by signals alone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            child(root, int(line))
        print(pid, flush=True)


def lines(log: Path) -> list[Any]:
    return [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_there(root: Path, state: State) -> bool:
    """Whether the disk holds this state, by content and by search."""
    if dict(Aliases(root).current().collections) != state["aliases"]:
        return False
    with Collection.open(root / "c") as collection:
        collection.check()
        items = collection.scroll(limit=10 * NAMES)
        if {item.id: item.payload["version"] for item in items} != state["points"]:
            return False
        for item in items:
            assert np.array_equal(item.vector, vector(item.id, item.payload["version"]))  # type: ignore[arg-type]
        asked = items[:: max(1, len(items) // 20)]
        if asked:
            for item, hits in zip(asked, collection.search([item.vector for item in asked], k=20), strict=True):
                assert hits[0].id == item.id
                assert {hit.id for hit in hits} <= set(state["points"])
                assert len(hits) == min(20, len(items))
    return True


def survive(root: Path, rounds: int, seed: int, longest: float) -> None:
    random_ = random.Random(seed)
    for name in ("c", "d"):
        Collection.open(root / name, DIMENSION).close()
    state: State = {"points": {}, "aliases": {}}
    acknowledged: Counter[str] = Counter()
    interrupted: Counter[str] = Counter()
    with running_mother(root) as process:
        for number in range(seed, seed + rounds):
            kill_one(process, root / f"log-{number}", number, random_.randint(0, 4), random_.uniform(0, longest))
            tried: list[Any] | None = None
            for word, operation in lines(root / f"log-{number}"):
                tried = operation if word == "try" else None
                if word == "done":
                    state = after(state, operation)
                    acknowledged[operation[0]] += 1
            interrupted[tried[0] if tried else "nothing"] += 1
            possible = [state] if tried is None else [state, after(state, tried)]
            found = [one for one in possible if is_there(root, one)]
            assert found, f"round {number}: the disk holds neither state; {tried} was being tried"
            state = found[-1]
    whole = [Collection.restore(copy, root / "restored" / copy.name) for copy in (root / "snapshots").glob("[0-9]*")]
    print(f"{rounds} kills during {dict(interrupted)}; acknowledged {dict(acknowledged)}; {len(whole)} snapshots whole")
    assert acknowledged.total() > rounds


@contextmanager
def running_mother(root: Path) -> Iterator[subprocess.Popen[str]]:
    folder = Path(__file__).parent
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import {Path(__file__).stem} as chaos, pathlib"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", f"{code}; chaos.mother(pathlib.Path({str(root)!r}))"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()


def kill_one(process: subprocess.Popen[str], log: Path, seed: int, operations: int, delay: float) -> None:
    """Start a child, let it do so many operations and work for `delay` seconds more, kill it."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{seed}\n")
    process.stdin.flush()
    pid = int(process.stdout.readline())
    try:
        while not log.exists() or not (words := [word for word, _ in lines(log)]) or words.count("done") < operations:
            assert alive(pid), f"the child failed by itself within its first {operations} operations"
            time.sleep(0.002)
        time.sleep(delay)
        assert alive(pid), f"the child failed by itself, after {lines(log)[-1]}"
    finally:
        os.kill(pid, signal.SIGKILL)
    while alive(pid):
        time.sleep(0.001)


@pytest.mark.timeout(900)
def test_twenty_kills_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    survive(tmp_path, rounds=20, seed=0, longest=0.2)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_two_hundred_and_fifty_kills_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    survive(tmp_path, rounds=250, seed=1000, longest=0.6)
