"""What a step of each strategy costs on a transformer, beside torch's own DDP and FSDP2 written by hand.

    python benchmarks/parallel.py [--repeats 3] [--rounds 1] [--slices 4] [--only fsdp "FSDP2 by hand"]

A ViT of 50 million parameters on small pictures, multi-similarity over the whole batch, AdamW; two gloo processes of
one thread. Each case runs in fresh processes, in every round anew. Of the steps after one that is not counted, CPU time
is the lowest (the workers' mean), wall time too (the slower worker's), and bytes are the median that the kernel counts
on the sockets of the worker that sends most. Memory is the fuller worker's peak, above what it held before it built
anything.

Each peer is there twice: one forward of all own rows, and slice after slice as raydml runs them, whose matrices are
smaller. The first against the second is what slices cost, raydml against the second what the rest of it costs. All
gather the embeddings for the loss, as raydml does, and begin with the same weights and batch: the losses of all steps
are compared.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import socket
import struct
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from contenders import ByHand, Contender, Ours
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from training import heading

from raydml.data import open_dataset
from raydml.parallel import Group
from raydml.spec import JobSpec
from raydml.training.process_group import _sockets, fixed_group

WORKERS, CLASSES, SAMPLES, PIXELS = 2, 8, 2, 32
VIT = {"hidden_size": 512, "num_hidden_layers": 16, "num_attention_heads": 8, "intermediate_size": 2048}
VIT |= {"patch_size": 8, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# Forked from a server that has imported them: imports would be most of a case's time, and are no memory of its own.
CONTEXT = multiprocessing.get_context("forkserver")
LIBRARIES = ["transformers.models.vit.modeling_vit", "torch._dynamo", "torch.distributed.pipelining"]
CONTEXT.set_forkserver_preload([*LIBRARIES, "torch.distributed.fsdp", "raydml.training.loop"])
MIB = 2**20


class FullyShardedByHand(ByHand):
    """As torch's tutorial of FSDP2 has it: each layer, then the model."""

    def wrapped(self, model: Any) -> nn.Module:
        """Cut in place."""
        for layer in model.backbone.model.layers:
            fully_shard(layer)
        return fully_shard(model)


class InSlices(ByHand):
    """The same with raydml's slices as micro-batches, whose matrices are as small: what slices cost by themselves."""

    def embedded(self, inputs: Tensor) -> Tensor:
        """Slice after slice; one backward pass goes through all of them."""
        size = self._spec.batch.slice_size
        return torch.cat([self._model(part) for part in inputs.split(size)])


class FullyShardedInSlices(FullyShardedByHand, InSlices):
    """Each slice gathers the layers, and the backward pass sums the gradients of each."""


@dataclass(frozen=True)
class Case:
    """Who trains, with what of `parallel`, and whom to compare it with."""

    make: Callable[..., Contender]
    parallel: dict[str, Any]
    peer: str


DDP, FSDP2 = "DDP by hand, in slices", "FSDP2 by hand, in slices"
CASES = {
    "DDP by hand": Case(ByHand, {}, DDP),
    DDP: Case(InSlices, {}, DDP),
    "ddp, bitwise": Case(Ours, {}, DDP),
    "ddp, fast": Case(Ours, {"numerics": "fast"}, DDP),
    "FSDP2 by hand": Case(FullyShardedByHand, {}, FSDP2),
    FSDP2: Case(FullyShardedInSlices, {}, FSDP2),
    "fsdp": Case(Ours, {"strategy": "fsdp"}, FSDP2),
    "tensor": Case(Ours, {"strategy": "tensor", "mesh": {"tensor": 2}}, DDP),
    "pipeline": Case(Ours, {"strategy": "pipeline", "mesh": {"pipeline": 2}}, DDP),
}


@dataclass(frozen=True)
class Cost:
    """Of a step: seconds of CPU and wall time, bytes of peak memory and bytes sent."""

    cpu: float
    wall: float
    memory: float
    sent: float


def spec_of(data: Path, slices: int, parallel: dict[str, Any]) -> JobSpec:
    """The job that all cases train, one strategy of it; graphs are kept, as the peers keep theirs."""
    return JobSpec.model_validate(
        {
            "name": "parallel",
            "data": {"kind": "arrays", "path": str(data), "image_size": PIXELS},
            "batch": {"classes": CLASSES, "samples": SAMPLES, "virtual_workers": slices},
            "model": {"backbone": {"kind": "transformers", "architecture": "ViTModel", "config": VIT}},
            "loss": {"kind": "multi_similarity"},
            "parallel": {"workers": WORKERS, "memory": "keep", **parallel},
            "train": {"optimizer": {"kind": "adamw", "lr": 1e-4}, "evaluate_every": 0},
            "evaluate": {"baseline": False},
            "watch": {"every": 0},
        }
    )


def write_pictures(path: Path) -> None:
    """Noise in colours, some classes for each split."""
    random = np.random.default_rng(0)
    splits = np.repeat(["train", "validation", "test"], [2 * CLASSES, 2, 2])
    labels = np.repeat(np.arange(len(splits)), SAMPLES)
    inputs = random.integers(0, 256, (len(labels), PIXELS, PIXELS, 3), dtype=np.uint8)
    np.savez(path, inputs=inputs, labels=labels, splits=np.repeat(splits, SAMPLES))


def sent_bytes() -> int:
    """What this process has sent over TCP so far: tcpi_bytes_sent of every connection."""
    total = 0
    for descriptor in _sockets().values():
        with socket.socket(fileno=os.dup(descriptor)) as copy:
            total += struct.unpack_from("<Q", copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 200)[0]
    return int(total)


def peak_bytes() -> int:
    """Most bytes that this process has held in memory."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def work(rank: int, name: str, data: Path, slices: int, repeats: int, store: str, to: Any) -> None:
    """One worker: take some steps, hand their cost and the losses to the parent."""
    warnings.simplefilter("ignore")  # torch tells of deprecations in each process
    torch.set_num_threads(1)
    case = CASES[name]
    spec = spec_of(data, slices, case.parallel)
    formed, group = fixed_group(rank, WORKERS, slices, dist.FileStore(store, WORKERS), axes=spec.parallel.mesh)
    dataset = open_dataset(spec.data, data.parent)
    before = peak_bytes()
    contender = case.make(spec, dataset, group)
    contender.take(1)
    costs = [step_cost(contender, group) for _ in range(repeats)]
    memory = peak_bytes() - before
    cpu, wall, sent = zip(*costs, strict=True)
    to.put((Cost(min(cpu), min(wall), memory, median(sent)), contender.losses))
    formed.leave()


def step_cost(contender: Contender, group: Group) -> tuple[float, float, int]:
    """Seconds of CPU and wall time, and bytes sent, of one step that all workers start together."""
    dist.barrier()
    sent, wall, cpu = sent_bytes(), time.perf_counter(), time.process_time()
    contender.take(1)
    return time.process_time() - cpu, time.perf_counter() - wall, sent_bytes() - sent


def measure(name: str, data: Path, slices: int, repeats: int) -> tuple[Cost, list[float]]:
    """One case in fresh processes: its cost, and its losses."""
    results = CONTEXT.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        given = (name, data, slices, repeats, str(Path(folder) / "store"), results)
        running = [CONTEXT.Process(target=work, args=(rank, *given)) for rank in range(WORKERS)]
        for process in running:
            process.start()
        for process in running:
            process.join()
    if any(process.exitcode for process in running):
        raise SystemExit(f"{name}: a worker failed")
    costs, losses = zip(*(results.get() for _ in running), strict=True)
    mean = sum(cost.cpu for cost in costs) / WORKERS
    most = {field: max(getattr(cost, field) for cost in costs) for field in ("wall", "memory", "sent")}
    return Cost(cpu=mean, **most), losses[0]


def lowest(costs: list[Cost]) -> Cost:
    """Of all rounds, figure by figure."""
    return Cost(*(min(getattr(cost, field) for cost in costs) for field in ("cpu", "wall", "memory", "sent")))


def row(name: str, cost: Cost, peer: Cost | None) -> str:
    """A line of the table; ratios to the peer, above 1 costs more."""
    cells = [name, f"{1e3 * cost.cpu:.0f}", f"{1e3 * cost.wall:.0f}"]
    cells += [f"{cost.memory / MIB:.0f}", f"{cost.sent / MIB:.1f}"]
    if peer is None or peer is cost:
        return f"| {' | '.join([*cells, *[''] * 5])} |"
    cells.append(CASES[name].peer)
    pairs = [(getattr(cost, field), getattr(peer, field)) for field in ("cpu", "wall", "memory", "sent")]
    return f"| {' | '.join([*cells, *(f'{own / other:.3g}' for own, other in pairs)])} |"


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="counted steps of a case in a round")
    parser.add_argument("--rounds", type=int, default=1, help="times that each case is run")
    parser.add_argument("--slices", type=int, default=4, help="V, into which raydml cuts the batch of 16 rows")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="these cases alone")
    given = parser.parse_args()
    print("\n".join(heading()))
    found: dict[str, list[Cost]] = {name: [] for name in given.only}
    wanted: list[float] | None = None
    with tempfile.TemporaryDirectory(prefix="raydml-parallel-") as folder:
        data = Path(folder) / "pictures.npz"
        write_pictures(data)
        open_dataset(spec_of(data, given.slices, {}).data, data.parent)  # built once, before the workers
        loads = [os.getloadavg()[0]]
        for _ in range(given.rounds):
            for name in found:
                cost, losses = measure(name, data, given.slices, given.repeats)
                found[name].append(cost)
                wanted = wanted or losses
                agree = np.allclose(losses, wanted, rtol=1e-3)
                assert agree, f"{name}: losses of {losses}, and {given.only[0]} has {wanted}"
                loads.append(os.getloadavg()[0])
    loaded = f"load {min(loads):.1f} - {max(loads):.1f}"
    print(f"V = {given.slices}, {given.rounds} rounds of {given.repeats} steps, {loaded}\n")
    print("| case | CPU-ms | wall ms | peak MiB | MiB sent | ratios to | CPU | wall | memory | sent |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    costs = {name: lowest(rounds) for name, rounds in found.items()}
    for name, cost in costs.items():
        print(row(name, cost, costs.get(CASES[name].peer)))
    print(f"\nlosses: {', '.join(f'{loss:.5f}' for loss in wanted or [])}")


if __name__ == "__main__":
    main()
