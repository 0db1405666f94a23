"""Search over HTTP against Faiss and against the library: batches, and many clients with one vector each.

python benchmarks/service_search.py [rows] [dimension] [seconds]

Everything runs on one thread of Faiss; the server is a real `raydml serve` that runs no jobs (the Ray of jobs would
start meanwhile), and its CPU time that of its processes.
`uncoalesced` is the same server with max_batch_queries=1: each request is a call of Faiss of its own.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"

import faiss
import httpx2
import numpy as np

from raydml.search import Collection

CLIENTS, K, BATCH = 64, 10, 64
RAW = "application/octet-stream"


class Costs(NamedTuple):
    """Seconds of wall and of CPU."""

    wall: float
    cpu: float

    def beside(self, other: Costs) -> str:
        """As a person reads it."""
        ratios = f"{self.wall / other.wall:.2f} (CPU {self.cpu / other.cpu:.2f}) of raw Faiss"
        return f"{1000 * self.wall:.1f} ms (CPU {1000 * self.cpu:.1f}), {ratios}"


def clustered(rows: int, dimension: int, seed: int) -> np.ndarray:
    """Unit vectors around a thousand centres, as embeddings lie."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((1000, dimension), dtype=np.float32)
    vectors = centres[random.integers(1000, size=rows)] + 0.5 * random.standard_normal((rows, dimension), np.float32)
    return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def costs(work: Callable[[], object], at_least: float, clock: Callable[[], float] = time.process_time) -> Costs:
    """Of one repetition, of as many as fit: the median of seconds, and the mean of seconds of CPU by the clock."""
    work()
    taken, end, before = [], time.perf_counter() + at_least, clock()
    while len(taken) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return Costs(median(taken), (clock() - before) / len(taken))


@contextmanager
def server(home: Path, *options: str) -> Iterator[tuple[str, int]]:
    """A real server: its address, and its process's id."""
    command = [sys.executable, "-c", "from raydml.cli import main; main()", "serve", "--port", "0"]
    command += ["--set", "supervise=false", *options]
    environment = {**os.environ, "RAYDML_HOME": str(home), "RAYDML_LOG_LEVEL": "info"}
    log = home / "server.log"
    with log.open("w") as file, subprocess.Popen(command, env=environment, stderr=file) as process:
        try:
            while not (found := re.search(r"http://(\S+) serves", log.read_text())):
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            yield found[1], process.pid
        finally:
            process.terminate()
            process.wait()


def cpu(pid: int) -> float:
    """CPU seconds so far of a process and its children: those of the server answer and supervise."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return own + sum(cpu(int(child)) for task in tasks for child in task.read_text().split())


async def load(address: str, queries: np.ndarray, lasting: float) -> list[float]:
    """Seconds of each request of CLIENTS connections, which ask one vector after another."""
    host, port = address.split(":")
    head = (
        f"POST /v1/collections/c/search?k={K} HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: {RAW}\r\nContent-Length: {4 * queries.shape[1]}\r\n\r\n"
    ).encode()
    taken: list[float] = []
    end = time.perf_counter() + lasting

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        while (start := time.perf_counter()) < end:
            writer.write(head + queries[number].tobytes())
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200"), answer
            await reader.readexactly(int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
            taken.append(time.perf_counter() - start)
        writer.close()

    await asyncio.gather(*map(client, range(CLIENTS)))
    return taken


def many_clients(home: Path, queries: np.ndarray, lasting: float, *options: str) -> dict[str, float]:
    """Requests a second and a CPU second, and latencies in ms."""
    with server(home, *options) as (address, pid):
        asyncio.run(load(address, queries, 1.0))
        before, start = cpu(pid), time.perf_counter()
        taken = sorted(asyncio.run(load(address, queries, lasting)))
        wall, used = time.perf_counter() - start, cpu(pid) - before
    searched = re.search(r"event=searches queries=(\d+) calls=(\d+)", (home / "server.log").read_text())
    assert searched
    p50, p99 = (1000 * taken[int(len(taken) * share)] for share in (0.5, 0.99))
    return {"per second": len(taken) / wall, "per CPU second": len(taken) / used, "p50 ms": p50, "p99 ms": p99,
            "queries a call": int(searched[1]) / int(searched[2])}  # fmt: skip


def main(rows: int = 200_000, dimension: int = 128, lasting: float = 8.0) -> None:
    """Print the table."""
    vectors, queries = clustered(rows, dimension, 1), clustered(BATCH, dimension, 2)
    print(
        f"faiss {faiss.__version__}, fastapi {version('fastapi')}, uvicorn {version('uvicorn')}, load {os.getloadavg()}"
    )
    print(f"{rows} x {dimension}, cosine, exact, k = {K}, payloads of two fields")
    flat = faiss.IndexFlatIP(dimension)
    flat.add(vectors)
    faiss.cvar.distance_compute_blas_threshold = 1
    raw = costs(lambda: flat.search(queries, K), lasting / 2)
    faiss.cvar.distance_compute_blas_threshold = 1 << 17
    single = costs(lambda: flat.search(queries[:1], K), 1.0)
    print(f"raw Faiss with BLAS: batch of {BATCH} {1000 * raw.wall:.1f} ms (CPU {1000 * raw.cpu:.1f}); "
          f"one query {1000 * single.wall:.2f} ms (CPU {1000 * single.cpu:.2f})")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="raydml-benchmark-") as folder:
        home = Path(folder)
        with Collection.open(home / "collections" / "c", dimension) as collection:
            for start in range(0, rows, 8192):
                part = range(start, min(start + 8192, rows))
                collection.upsert(
                    part, vectors[part.start : part.stop], [{"row": row, "label": row % 7} for row in part]
                )
            collection.seal()
            inside = costs(lambda: collection.search(queries, k=K), lasting / 2)
        print(f"library: batch of {BATCH} {inside.beside(raw)}")
        with server(home) as (address, pid), httpx2.Client(timeout=60) as client:

            def post() -> None:
                url = f"http://{address}/v1/collections/c/search?k={K}"
                assert client.post(url, content=queries.tobytes(), headers={"content-type": RAW}).status_code == 200

            over_http = costs(post, lasting / 2, lambda: cpu(pid))
        print(f"HTTP: batch of {BATCH} {over_http.beside(raw)}")
        together = many_clients(home, queries, lasting)
        apart = many_clients(home, queries, lasting, "--set", "max_batch_queries=1")
    for name, measured in (("coalesced", together), ("uncoalesced", apart)):
        print(f"{CLIENTS} clients, {name}: " + ", ".join(f"{key} {value:.1f}" for key, value in measured.items()))
    print(f"coalesced / uncoalesced, per CPU second: {together['per CPU second'] / apart['per CPU second']:.1f}")
    print(f"library's batches / coalesced, per second: {BATCH / inside.wall / together['per second']:.2f}, "
          f"per CPU second: {BATCH / inside.cpu / together['per CPU second']:.2f}")  # fmt: skip


if __name__ == "__main__":
    main(*(kind(value) for kind, value in zip((int, int, float), sys.argv[1:], strict=False)))
