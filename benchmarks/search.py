"""Collections against Faiss in process and other libraries: time at equal recall, building, memory; also filters.

    python benchmarks/search.py [--rows 100000] [--queries 1024] [--recall 0.999] [--peers PYTHON] [--only NAME]
        [--embeddings FILE]

Every contender runs in a fresh process of one thread. Vectors are float32 of 128 coordinates and unit length: those of
the file that `embeddings.py` wrote, or a hundred around each centre with as much noise as the centre is long; queries
are like them and are not stored. A contender is searched with rising effort, in batches of 64, until its recall of the
ten nearest by inner product reaches --recall.
Batches of Faiss are searched with and without BLAS (`distance_compute_blas_threshold`), and the faster counts.
Other libraries (`search_peers.py`) run in the interpreter --peers, apart from raydml's; one that is missing there, or
takes more than ten minutes, is said to. `--only ingest` and `--only filters` are raydml's own.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from search_peers import EFFORTS, PEERS, Array, K, Search

DIMENSION, CLASS_SIZE, BATCH, INGEST = 128, 100, 64, 256
PATIENCE = 600  # seconds for one contender


def drawn(rows: int, queries: int, embeddings: str | None = None) -> tuple[Array, Array, Array]:
    """Vectors, queries, and the classes of the vectors."""
    if embeddings is not None:
        with np.load(embeddings) as file:
            return file["vectors"][:rows], file["queries"][:queries], file["classes"][:rows]
    random = np.random.default_rng(0)
    centres = random.standard_normal((max(1, rows // CLASS_SIZE), DIMENSION), dtype=np.float32)
    classes = random.integers(0, len(centres), rows + queries)
    vectors = centres[classes] + random.standard_normal((rows + queries, DIMENSION), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[:rows], vectors[rows:], classes[:rows]


def true_neighbours(vectors: Array, queries: Array, k: int = K) -> Array:
    """Rows (nq, k) of the k largest inner products."""
    parts = np.array_split(queries, max(1, len(queries) // 256))
    found = [np.argsort(-(part @ vectors.T), axis=1)[:, :k] for part in parts]
    return np.concatenate(found)


def faiss_index(
    factory: str, setting: str, euclidean: bool = False, factor: int = 10
) -> Callable[[Array], Iterator[tuple[int, Search]]]:
    """A contender: Faiss's index of this factory string, with rising `setting`.

    By inner products or by Euclidean distances, which find the same rows of unit length; where it ends with RFlat,
    `factor` candidates are compared for each hit.
    """

    def build(vectors: Array) -> Iterator[tuple[int, Search]]:
        import faiss

        index = faiss.index_factory(DIMENSION, factory, faiss.METRIC_L2 if euclidean else faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add(vectors)
        for effort in EFFORTS if setting else (1,):
            if setting == "efSearch":
                index.hnsw.efSearch = 2 * effort
            elif setting:
                inner = faiss.downcast_index(index.base_index) if factory.endswith("RFlat") else index
                inner.nprobe = effort
                if factory.endswith("RFlat"):
                    index.k_factor = factor
            yield effort, lambda queries: index.search(queries, K)[1]

    return build


def raydml_collection(vectors: Array, recall: float) -> Iterator[tuple[int, Search]]:
    from raydml.search import Collection, compaction

    with tempfile.TemporaryDirectory() as folder:
        collection = Collection.open(Path(folder) / "c", DIMENSION, "cosine", recall=recall)
        with collection.batch():
            collection.upsert(range(len(vectors)), vectors)
        collection.seal()
        compaction.compact(collection.path)
        chosen = [part.get("setting") for part in collection.stats()["parts"]]
        print("raydml chose", chosen, file=sys.stderr)

        def search(queries: Array) -> Array:
            hits = collection.search(queries, k=K, with_payload=False)
            return np.array([[hit.id for hit in row] for row in hits])

        yield 0, search


CONTENDERS: dict[str, Callable[[Array], Iterator[tuple[int, Search]]]] = {
    "Faiss Flat": faiss_index("Flat", ""),
    "Faiss IVF1024,Flat": faiss_index("IVF1024,Flat", "nprobe"),
    "Faiss IVF1024,SQfp16": faiss_index("IVF1024,SQfp16", "nprobe"),
    "Faiss IVF1024,PQ64x4fs,RFlat": faiss_index("IVF1024,PQ64x4fs,RFlat", "nprobe"),
    "Faiss IVF512,PQ64x4fs,RFlat, distances": faiss_index("IVF512,PQ64x4fs,RFlat", "nprobe", True, 5),
    "Faiss IVF2048,PQ64x4fs,RFlat, distances": faiss_index("IVF2048,PQ64x4fs,RFlat", "nprobe", True, 7),
    "Faiss IVF4096,Flat": faiss_index("IVF4096,Flat", "nprobe"),
    "Faiss IVF4096,SQfp16": faiss_index("IVF4096,SQfp16", "nprobe"),
    "Faiss HNSW32": faiss_index("HNSW32", "efSearch"),
    **PEERS,
}


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Build one contender and raise its effort until the target."""
    queries, target = given.queries, given.recall
    vectors, asked, _ = drawn(given.rows, queries, given.embeddings)
    truth = true_neighbours(vectors, asked)
    before, start = _memory(), time.process_time()
    settings = raydml_collection(vectors, target) if name == "raydml" else CONTENDERS[name](vectors)
    result: dict[str, Any] = {}
    for effort, search in settings:
        built = result.get("build") or time.process_time() - start
        found = _in_batches(search, asked)
        recall = float((found[:, :, None] == truth[:, None, :]).any(axis=1).mean())
        times = _batches(name, search, asked)
        single = _cpu(lambda search=search: [search(asked[row : row + 1]) for row in range(200)]) / 200
        result = {"name": name, "build": built, "extra": _memory() - before, "effort": effort, "recall": recall}
        result |= {"batch": min(times) / queries * 1e6, "single": single * 1e6}
        if recall >= target:
            break
    return result


def _batches(name: str, search: Search, asked: Array) -> list[float]:
    """CPU-seconds of all queries in batches, several times; of Faiss with either way to multiply."""
    thresholds = [1, 128_000] if name.startswith("Faiss") else [None]
    times = []
    for threshold in thresholds:
        if threshold is not None:
            import faiss

            faiss.cvar.distance_compute_blas_threshold = threshold
        times += [_cpu(lambda: _in_batches(search, asked)) for _ in range(5)]
    return times


def ingest(rows: int) -> dict[str, Any]:
    """Upserts of 256 vectors with payloads, one after another, each durable; then opening what is there."""
    from raydml.search import Collection, compaction

    vectors, _, classes = drawn(rows, 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c"
        collection = Collection.open(path, DIMENSION)
        wall, cpu = time.perf_counter(), time.process_time()
        for start in range(0, rows, INGEST):
            here = slice(start, start + INGEST)
            payloads = [{"class": number} for number in classes[here].tolist()]
            collection.upsert(range(start, start + len(payloads)), vectors[here], payloads)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        collection.seal()
        collection.close()
        opening = min(_opened(path) for _ in range(5))
        compacting = _cpu(lambda: compaction.compact(path))
        return {"rows": rows, "wall": rows / wall, "cpu": rows / cpu, "open": opening, "compact": compacting,
                "open compacted": min(_opened(path) for _ in range(5))}  # fmt: skip


def filters(rows: int, queries: int) -> list[dict[str, Any]]:
    """Recall and time of filters that allow a share of the rows, at random and by whole classes."""
    from raydml.search import Collection, compaction

    vectors, asked, classes = drawn(rows, queries)
    random = np.random.default_rng(1)
    in_order = random.permutation(int(classes.max()) + 1) / (classes.max() + 1)  # so that 0.1 % is one class in 1,000
    shares = {"random": random.random(rows), "class": in_order[classes]}
    results = []
    with tempfile.TemporaryDirectory() as folder:
        collection = Collection.open(Path(folder) / "c", DIMENSION)
        for field in shares:
            collection.index_payload(field)
        payloads = [{name: float(values[row]) for name, values in shares.items()} for row in range(rows)]
        collection.upsert(range(rows), vectors, payloads)
        compaction.compact(collection.path)
        for name, values in shares.items():
            for share in (0.5, 0.1, 0.01, 0.001):
                allowed = np.flatnonzero(values < share)
                truth = allowed[true_neighbours(vectors[allowed], asked)]
                filter = {name: {"lt": share}}

                def search(some: Array, filter: Any = filter) -> Any:
                    return [
                        [hit.id for hit in row] for row in collection.search(some, filter=filter, with_payload=False)
                    ]

                first = _cpu(lambda search=search: search(asked[:1]))
                found = [row for start in range(0, queries, BATCH) for row in search(asked[start : start + BATCH])]
                hits = sum(len(set(row) & set(expected.tolist())) for row, expected in zip(found, truth, strict=True))
                batch = _cpu(lambda search=search: _in_batches(search, asked)) / queries
                single = _cpu(lambda search=search: [search(asked[row : row + 1]) for row in range(100)]) / 100
                results.append({"by": name, "share": share, "rows": len(allowed), "recall": hits / truth.size,
                                "first": first * 1e3, "batch": batch * 1e6, "single": single * 1e6})  # fmt: skip
    return results


def _opened(path: Path) -> float:
    from raydml.search import Collection

    start = time.perf_counter()
    Collection.open(path).close()
    return time.perf_counter() - start


def _in_batches(search: Search, queries: Array) -> Array:
    return np.concatenate([search(queries[start : start + BATCH]) for start in range(0, len(queries), BATCH)])


def _cpu(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _memory() -> float:
    """Resident MiB of this moment, without what was freed."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def _apart(arguments: argparse.Namespace, name: str) -> Any:
    """The measurement in a process of its own; None where that fails, as for a library that is missing."""
    python = arguments.peers if name in PEERS and arguments.peers else sys.executable
    command = [python, __file__, "--only", name, "--rows", str(arguments.rows)]
    command += ["--queries", str(arguments.queries), "--recall", str(arguments.recall)]
    command += [] if arguments.embeddings is None else ["--embeddings", arguments.embeddings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return None
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1024)
    parser.add_argument("--recall", type=float, default=0.999)
    parser.add_argument("--peers", help="an interpreter with the other libraries; this one if none is given")
    parser.add_argument("--embeddings", help="a file of benchmarks/embeddings.py, in place of random vectors")
    parser.add_argument("--only")
    arguments = parser.parse_args()
    if arguments.only == "ingest":
        print(json.dumps(ingest(arguments.rows)))
    elif arguments.only == "filters":
        print(json.dumps(filters(arguments.rows, arguments.queries)))
    elif arguments.only:
        print(json.dumps(measure(arguments.only, arguments)))
    else:
        print(
            "| | recall | CPU-us a query, batches of 64 | alone | build CPU-s | extra MiB | effort |\n"
            "|---|---|---|---|---|---|---|"
        )
        for name in ["raydml", *CONTENDERS]:
            row = _apart(arguments, name)
            if row is None:
                print(f"| {name} | not measured: missing, failed, or too slow | | | | | |", flush=True)
            else:
                print(f"| {name} | {row['recall']:.4f} | {row['batch']:.0f} | {row['single']:.0f} | {row['build']:.1f} "
                      f"| {row['extra']:.0f} | {row['effort']} |", flush=True)  # fmt: skip
        print(_apart(arguments, "ingest"), flush=True)
        for row in _apart(arguments, "filters"):
            print(row, flush=True)


if __name__ == "__main__":
    main()
