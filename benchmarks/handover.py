"""What it costs to give a joiner the state at a step's boundary: two processes over loopback.

    python benchmarks/handover.py [--megabytes 100]

A model of that many megabytes in float32, trained by AdamW: its state is three times as large. The times are those of
the giver and of the taker from the moment at which both have met, with both SHA-256 and the copy into the live state;
beside them stands the same state through a checkpoint on the local disk. CPU-seconds are told too: on a shared machine
they are what can be compared.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from raydml.parallel import Group
from raydml.spec import JobSpec
from raydml.training import handover
from raydml.training.process_group import fixed_group
from raydml.training.worker import Job, Worker


def worker_of(megabytes: int, folder: str) -> Worker:
    """A multilayer perceptron with one large layer, after one step."""
    width = int((megabytes * 1e6 / 4) ** 0.5)
    spec = JobSpec.model_validate(
        {
            "name": "handover",
            "data": {"kind": "arrays", "path": f"{folder}/images.npz", "image_size": 8, "grayscale": True},
            "batch": {"classes": 8, "samples": 4, "virtual_workers": 2},
            "model": {"backbone": {"kind": "mlp", "hidden": [width, width]}, "dimension": 8},
            "loss": {"kind": "multi_similarity"},
            "train": {"steps": 9},
        }
    )
    worker = Worker(Job(spec, Path(folder), Path(folder), None), Group(0, 1, 2), torch.device("cpu"))
    worker.trainer.run(1, lambda report: True)
    return worker


def write_images(folder: str) -> None:
    """Noise of twenty classes."""
    labels = np.repeat(np.arange(20), 6)
    images = np.random.default_rng(0).integers(0, 255, (len(labels), 8, 8), dtype=np.uint8)
    np.savez(f"{folder}/images.npz", inputs=images, labels=labels, splits=np.array(["train", "test"])[labels % 2])


def member(rank: int, megabytes: int, folder: str, told: multiprocessing.SimpleQueue[tuple[int, float, float]]) -> None:
    """One of the two."""
    torch.set_num_threads(1)
    worker = worker_of(megabytes, folder)
    processes, group = fixed_group(rank, 2, 2, dist.FileStore(f"{folder}/store", 2))
    for _ in range(3):
        group.vote()
        began, worked = time.perf_counter(), time.process_time()
        if rank == 0:
            handover.give(worker, "lineage", [1])
        else:
            handover.take(worker, 0)
        told.put((rank, time.perf_counter() - began, time.process_time() - worked))
    processes.leave()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    megabytes = parser.parse_args().megabytes
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        write_images(folder)
        told = context.SimpleQueue()
        members = [context.Process(target=member, args=(rank, megabytes, folder, told)) for rank in (0, 1)]
        for process in members:
            process.start()
        times = [told.get() for _ in range(6)]
        for process in members:
            process.join()
        for rank, what in ((0, "given"), (1, "taken")):
            seconds, work = min((seconds, work) for who, seconds, work in times if who == rank)
            print(f"{what}: {seconds:.2f} s, {work:.2f} CPU-seconds, the best of three")
        worker = worker_of(megabytes, folder)
        state, checkpoints = worker.trainer.state, worker.checkpoints
        print(f"state: {sum(value.nbytes for value in state.tensors().values()) / 1e6:.0f} MB")
        for what, act in (("saved", lambda: checkpoints.save(state, None)), ("loaded", lambda: worker.restore(1))):
            began, worked = time.perf_counter(), time.process_time()
            act()
            print(f"{what}: {time.perf_counter() - began:.2f} s, {time.process_time() - worked:.2f} CPU-seconds")


if __name__ == "__main__":
    main()
