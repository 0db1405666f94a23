"""Retrieval metrics: raydml's against pytorch-metric-learning's AccuracyCalculator, time and peak extra memory.

    python benchmarks/evaluation.py [--rows 20000] [--rounds 3] [--large] [--million] [--skewed] [--queries 4096]

Every measurement runs in a fresh process of one thread, the contenders taking turns. Vectors are float32 of 128
coordinates, ten of a class: its centre and 1.2 times as much noise, of unit length, in random order. In the comparison
every row is a query and in the gallery; of the larger galleries the first --queries rows are queries.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

DIMENSION = 128
CLASS_SIZE = 10
ROWS_AT_ONCE = 10_000
NAMES = {"precision_at_1": "precision_at_1", "r_precision": "r_precision", "mean_average_precision_at_r": "map_at_r"}
Array = np.ndarray[Any, Any]


def labelled_vectors(rows: int, largest: int) -> tuple[Array, Array]:
    """Float32 (rows, DIMENSION) and int64 (rows,); the first class has `largest` rows, the others CLASS_SIZE."""
    random = np.random.default_rng(0)
    labels = random.permutation(np.maximum(0, np.arange(rows) - largest + CLASS_SIZE) // CLASS_SIZE)
    centres = random.standard_normal((int(labels.max()) + 1, DIMENSION), dtype=np.float32)
    vectors = random.standard_normal((rows, DIMENSION), dtype=np.float32)
    for start in range(0, rows, ROWS_AT_ONCE):
        here = vectors[start : start + ROWS_AT_ONCE]
        here *= 1.2
        here += centres[labels[start : start + ROWS_AT_ONCE]]
        here /= np.linalg.norm(here, axis=1, keepdims=True)
    return vectors, labels


def ours(vectors: Array, labels: Array, queries: int) -> dict[str, float]:
    """P@1, R-precision, MAP@R, and recall at 1, 10 and 100."""
    from raydml.evaluation import retrieval, summarise

    own = np.arange(queries)
    return summarise(retrieval(vectors[:queries], labels[:queries], vectors, labels, own=own))


def peers(vectors: Array, labels: Array, queries: int) -> dict[str, float]:
    """P@1, R-precision and MAP@R of AccuracyCalculator, which searches with Faiss; all rows are queries."""
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    assert queries == len(vectors)
    calculator = AccuracyCalculator(include=tuple(NAMES), k="max_bin_count", device=torch.device("cpu"))
    found = calculator.get_accuracy(torch.from_numpy(vectors), torch.from_numpy(labels))
    return {NAMES[name]: value for name, value in found.items()}


CONTENDERS = {"raydml": ours, "AccuracyCalculator": peers}


def memory(field: str) -> float:
    """VmRSS or VmHWM of this process, MiB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def measure(contender: str, rows: int, queries: int, largest: int) -> None:
    """In a fresh process: print seconds, CPU seconds, MiB above the data, and the metrics, as JSON."""
    vectors, labels = labelled_vectors(rows, largest)
    few = np.argsort(labels, kind="stable")[-20 * CLASS_SIZE :]
    CONTENDERS[contender](vectors[few], labels[few], len(few))  # libraries load and warm up
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew: proc(5)
    before, started, spent = memory("VmRSS"), time.perf_counter(), time.process_time()
    metrics = CONTENDERS[contender](vectors, labels, queries)
    seconds, cpu = time.perf_counter() - started, time.process_time() - spent
    print(json.dumps({"seconds": seconds, "cpu": cpu, "extra": memory("VmHWM") - before, "metrics": metrics}))


def fresh(contender: str, rows: int, queries: int, largest: int = CLASS_SIZE) -> dict[str, Any]:
    """The same from a process of its own with one thread."""
    command = [sys.executable, __file__, "--measure", contender, str(rows), str(queries), str(largest)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(rows: int, rounds: int) -> None:
    """Both contenders in turn; medians, and the largest difference between their metrics."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name, found in results.items():
            found.append(fresh(name, rows, rows))
    for name, found in results.items():
        show(name, rows, rows, {key: median(one[key] for one in found) for key in ("seconds", "cpu", "extra")})
    first, second = (found[0]["metrics"] for found in results.values())
    print(f"largest difference: {max(abs(first[name] - second[name]) for name in second):.1e}; {first}")


def show(name: str, rows: int, queries: int, found: dict[str, Any]) -> None:
    """One row of the table."""
    each = f"{1000 * found['cpu'] / queries:.3f}"
    numbers = f"{found['seconds']:.2f} | {found['cpu']:.2f} | {each} | {found['extra']:.1f}"
    print(f"| {name} | {queries:,} x {rows:,} | {numbers} |", flush=True)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="rows of the comparison")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each contender")
    parser.add_argument("--large", action="store_true", help="a gallery of 200,000 for raydml alone")
    parser.add_argument("--million", action="store_true", help="a gallery of a million for raydml alone")
    parser.add_argument("--skewed", action="store_true", help="a gallery of 200,000 with a class of 50,000")
    parser.add_argument("--queries", type=int, default=4096, help="queries of the larger galleries; 0: all rows")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        name, *numbers = given.measure
        measure(name, *map(int, numbers))
        return
    print("| | queries x gallery | s | CPU-s | CPU-ms a query | extra MiB |\n|---|---|---|---|---|---|")
    compare(given.rows, given.rounds)
    larger = {
        "raydml": (200_000, CLASS_SIZE, given.large),
        "raydml, a million": (1_000_000, CLASS_SIZE, given.million),
        "raydml, a class of 50,000": (200_000, 50_000, given.skewed),
    }
    for name, (rows, largest, wanted) in larger.items():
        if wanted:
            queries = given.queries or rows
            show(name, rows, queries, fresh("raydml", rows, queries, largest))


if __name__ == "__main__":
    main()
