"""Peak memory of a training step: `memory: keep` against `recompute` for growing batches, and one very large batch.

    python benchmarks/memory.py [--slices 2 4 8 16 32] [--large 256] [--steps 2]

Glyphs of 32 x 32 pixels through small_cnn, ArcFace, slices of 128 images, one worker of one thread. Every run is a
process of its own: `peak` is the kernel's figure (ru_maxrss), `added` is that less what it had held before its first
step. The keep of the large batch is not run but estimated as in `raydml plan`. Both ways must end with the same bits.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from training import heading

from raydml.data import open_dataset
from raydml.parallel import Group
from raydml.plan import plan
from raydml.spec import JobSpec
from raydml.training.worker import Job, Worker

SLICE = 128
SAMPLES = 32
GIB = 2**30


@dataclass(frozen=True)
class Outcome:
    """Bytes of the process before its first step and at its peak; seconds a step; loss and state at the end."""

    before: int
    peak: int
    cpu: float
    wall: float
    loss: float
    sha256: str


def spec_of(num_slices: int, memory: str, steps: int) -> JobSpec:
    """A job of `num_slices` slices; one that keeps to float32 and bitwise sums."""
    return JobSpec.model_validate(
        {
            "name": "memory",
            "seed": 7,
            "data": {"kind": "glyphs"},
            "batch": {
                "classes": num_slices * SLICE // SAMPLES,
                "samples": SAMPLES,
                "virtual_workers": num_slices,
            },
            "model": {"backbone": {"kind": "small_cnn", "dropout": 0.1}, "dimension": 128},
            "loss": {"kind": "arcface"},
            "parallel": {"memory": memory},
            "train": {"steps": steps, "evaluate_every": 0, "clip_norm": 10},
        }
    )


def peak_bytes() -> int:
    """Most bytes that this process has held in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def train(spec: JobSpec, home: Path) -> Outcome:
    """Train in this process."""
    warnings.simplefilter("ignore")  # torch tells of deprecations
    worker = Worker(Job(spec, home, home, None), Group(0, 1, spec.batch.virtual_workers), torch.device("cpu"))
    before, started, cpu = peak_bytes(), time.perf_counter(), time.process_time()
    losses: list[float] = []
    worker.trainer.run(spec.train.steps, lambda report: bool(losses.append(report.loss) or True))
    steps = spec.train.steps
    return Outcome(
        before,
        peak_bytes(),
        (time.process_time() - cpu) / steps,
        (time.perf_counter() - started) / steps,
        losses[-1],
        worker.trainer.state.digest(),
    )


def apart(spec: JobSpec, home: Path) -> Outcome:
    """Train in a fresh process, whose peak is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(train, (spec, home))


def row(spec: JobSpec, home: Path, found: Outcome | None) -> str:
    """One line of the table."""
    choice = plan(spec, open_dataset(spec.data, home)).choice(1)
    assert choice is not None
    memory = spec.parallel.memory
    estimate = choice.keep if memory == "keep" else choice.recompute
    cells = [f"{spec.batch.size:,}", str(spec.batch.virtual_workers), memory, f"{estimate / GIB:.2f}"]
    if found is None:
        return f"| {' | '.join([*cells, *['not run'] * 6])} |"
    cells += [f"{(found.peak - found.before) / GIB:.2f}", f"{found.peak / GIB:.2f}"]
    cells += [f"{found.cpu:.1f}", f"{found.wall:.1f}", f"{found.loss:.4f}", f"`{found.sha256[:12]}`"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, nargs="*", default=[2, 4, 8, 16, 32], help="batches run both ways")
    parser.add_argument("--large", type=int, default=256, help="slices of the batch that is recomputed alone; 0: none")
    parser.add_argument("--steps", type=int, default=2, help="steps of each run")
    given = parser.parse_args()
    print("\n".join(heading()))
    columns = ("images", "slices", "memory", "estimate, GiB", "added, GiB", "peak, GiB", "CPU-s / step", "s / step")
    print(f"| {' | '.join([*columns, 'loss', 'state'])} |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="raydml-memory-") as folder:
        home = Path(folder)
        for num_slices in given.slices:
            pair = {}
            for memory in ("keep", "recompute"):
                spec = spec_of(num_slices, memory, given.steps)
                pair[memory] = apart(spec, home)
                print(row(spec, home, pair[memory]), flush=True)
            if pair["keep"].sha256 != pair["recompute"].sha256:
                raise SystemExit(f"{num_slices} slices: recompute ends with other bits than keep")
        if given.large:
            print(row(spec_of(given.large, "keep", given.steps), home, None), flush=True)
            spec = spec_of(given.large, "recompute", given.steps)
            print(row(spec, home, apart(spec, home)), flush=True)


if __name__ == "__main__":
    main()
