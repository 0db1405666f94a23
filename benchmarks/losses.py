"""Losses over large batches: raydml's tiles against pytorch-metric-learning, CPU time and memory per worker.

    python benchmarks/losses.py [--repeats 3] [--large] [--largest 65536] [--ring]

Two gloo processes of one thread, D = 128, K = 4, each with half of the rows. pytorch-metric-learning computes the whole
loss on every worker (its DistributedLossWrapper's exact way), raydml half of the pairs of rows. Each case runs in fresh
processes, so that peak memory is its own; CPU time is the lowest of the repeats, after one that is not counted, and a
step is repeated for four seconds at least, ours and the peer's alike. The floor is the time of four products
(B / 2, D) x (D, B / 2) at the measured speed of this machine's matrix product: scores, scores again, gradients of both
rows of a pair. `--large` adds one step each of --largest rows, which the peer cannot hold. `--ring` compares embeddings
that are gathered with those that travel around the workers: the same bits.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from pydantic import TypeAdapter
from training import heading

from raydml.catalogue import LossSpec
from raydml.losses import Objective, evaluate_objective
from raydml.losses.table import LOSSES
from raydml.parallel import Group
from raydml.training.process_group import fixed_group

WORKERS, SLICES, DIMENSION, SAMPLES = 2, 8, 128, 4
SECONDS = 4.0
CASES = [("sup_con", 4096), ("sup_con", 8192), ("contrastive", 8192), ("multi_similarity", 8192), ("nt_xent", 256)]
LARGE = ("sup_con", "contrastive", "nt_xent")
RING = [("sup_con", 8192), ("triplet", 8192), ("sup_con", 32768)]


@dataclass(frozen=True)
class Cost:
    """What one worker spent on one loss with its gradient."""

    cpu: float  # seconds
    memory: float  # bytes of peak resident memory above that before the first
    loss: float


def batch(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes of K rows, sample k of all classes after sample k - 1, as the sampling plan lays them."""
    generator = torch.Generator().manual_seed(rows)
    labels = torch.arange(rows // SAMPLES).repeat(SAMPLES)
    centers = torch.randn(rows // SAMPLES, DIMENSION, generator=generator)
    return centers[labels] + torch.randn(rows, DIMENSION, generator=generator), labels


class Ours:
    """raydml's objective; in tiles whatever the size, so that small batches show their cost."""

    travels = False

    def __init__(self, kind: str, rows: int, group: Group) -> None:
        spec = TypeAdapter[Any](LossSpec).validate_python({"kind": kind})
        self._objective = Objective(
            spec, num_classes=rows // SAMPLES, dimension=DIMENSION, seed=0, dtype=torch.float32, batch_size=1 << 30
        )
        self._group = group

    def __call__(self, local: torch.Tensor, labels: torch.Tensor) -> float:
        """Gather, loss, own gradients."""
        embeddings = local if self.travels else self._group.gather_slices(local)
        return float(evaluate_objective(self._objective, embeddings, labels, 0, 0, self._group).loss)


class Ring(Ours):
    """The same, with embeddings that travel."""

    travels = True


class Peer:
    """pytorch-metric-learning on the gathered batch, gradients of the own rows kept."""

    def __init__(self, kind: str, rows: int, group: Group) -> None:
        # The library's own class: raydml's table has a rewritten NT-Xent.
        self._loss = next(base for base in LOSSES[kind].__mro__ if base.__module__.startswith("pytorch_metric"))()
        self._group = group

    def __call__(self, local: torch.Tensor, labels: torch.Tensor) -> float:
        """Gather, loss, gradients."""
        own = local.clone().requires_grad_()
        parts = [torch.empty_like(own) for _ in range(WORKERS)]
        dist.all_gather(parts, own.detach())
        parts[self._group.rank] = own
        loss = self._loss(torch.cat(parts), labels)
        loss.backward()
        return float(loss.detach())


def work(rank: int, contender: str, kind: str, rows: int, repeats: int, home: str, results: Any) -> None:
    """One worker: repeat one loss, hand its cost to the parent."""
    torch.set_num_threads(1)
    formed, group = fixed_group(rank, WORKERS, SLICES, dist.FileStore(home, WORKERS))
    take = {"ours": Ours, "ring": Ring, "peer": Peer}[contender](kind, rows, group)
    embeddings, labels = batch(rows)
    local = embeddings[rank * rows // WORKERS : (rank + 1) * rows // WORKERS].clone()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times, loss = [], 0.0
    began, more = time.perf_counter(), torch.ones(1)
    while more:
        dist.barrier()
        started = time.process_time()
        loss = take(local, labels)
        times.append(time.process_time() - started)
        more.fill_(len(times) <= repeats or (repeats > 0 and time.perf_counter() - began < SECONDS))
        dist.broadcast(more, 0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    results.put(Cost(min(times[1:] or times), 1024 * peak, loss))
    formed.leave()


def measure(contender: str, kind: str, rows: int, repeats: int) -> Cost | None:
    """The mean over workers in fresh processes; None where they died for want of memory."""
    context = processes.get_context("spawn")
    results = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        given = (contender, kind, rows, repeats, str(Path(folder) / "store"), results)
        running = [context.Process(target=work, args=(rank, *given)) for rank in range(WORKERS)]
        for process in running:
            process.start()
        for process in running:
            process.join()
    if any(process.exitcode for process in running):
        return None
    costs = [results.get() for _ in running]
    return Cost(*(sum(values) / WORKERS for values in zip(*((c.cpu, c.memory, c.loss) for c in costs), strict=True)))


def product_speed() -> float:
    """FLOP/s of this machine's float32 matrix product at a tile's shape, one thread, the best of 20."""
    torch.set_num_threads(1)
    rows, columns = torch.randn(256, DIMENSION), torch.randn(1024, DIMENSION)
    best = float("inf")
    for _ in range(20):
        started = time.process_time()
        for _ in range(20):
            rows @ columns.T
        best = min(best, (time.process_time() - started) / 20)
    return 2 * 256 * 1024 * DIMENSION / best


def compare_ring(repeats: int) -> None:
    """Cost of a worker whose embeddings are gathered, and of one whose embeddings travel."""
    print("| loss | B | gathered CPU-ms | ring CPU-ms | gathered MB | ring MB |\n|---|---|---|---|---|---|")
    for kind, rows in RING:
        gathered, ring = (measure(name, kind, rows, repeats) for name in ("ours", "ring"))
        assert gathered is not None and ring is not None and gathered.loss == ring.loss
        times = f"{1e3 * gathered.cpu:.0f} | {1e3 * ring.cpu:.0f}"
        print(f"| {kind} | {rows:,} | {times} | {gathered.memory / 1e6:.0f} | {ring.memory / 1e6:.0f} |", flush=True)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="timed repeats of each case")
    parser.add_argument("--large", action="store_true", help="--largest rows too, ours alone, one step each")
    parser.add_argument("--largest", type=int, default=65536, help="B of --large")
    parser.add_argument("--ring", action="store_true", help="only: embeddings gathered against travelling")
    given = parser.parse_args()
    print("\n".join(heading()))
    if given.ring:
        compare_ring(given.repeats)
        return
    speed = product_speed()
    print(f"matrix product: {speed / 1e9:.0f} GFLOP/s a core\n")
    print("| loss | B | ours CPU-ms | peer CPU-ms | ratio | floor CPU-ms | ours MB | peer MB | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    alone = [(kind, given.largest) for kind in LARGE] if given.large else []
    for kind, rows in CASES + alone:
        against = (kind, rows) not in alone
        ours = measure("ours", kind, rows, given.repeats if against else 0)
        peer = measure("peer", kind, rows, given.repeats) if against else None
        assert ours is not None
        floor = 4 * 2 * DIMENSION * rows * rows / 2 / WORKERS / speed
        left = f"| {kind} | {rows:,} | {1e3 * ours.cpu:.1f} |"
        if peer is None:
            print(f"{left} - | - | {1e3 * floor:.1f} | {ours.memory / 1e6:.0f} | - | - |", flush=True)
            continue
        assert abs(ours.loss - peer.loss) < 1e-4 * abs(peer.loss), f"{kind}: {ours.loss} against {peer.loss}"
        print(
            f"{left} {1e3 * peer.cpu:.1f} | 1/{peer.cpu / ours.cpu:.1f} | {1e3 * floor:.1f} | {ours.memory / 1e6:.0f} "
            f"| {peer.memory / 1e6:.0f} | 1/{peer.memory / max(ours.memory, 1e5):.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
