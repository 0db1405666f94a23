"""Real gloo processes for tests: forked from a server that has imported torch once, each with a time limit."""

from __future__ import annotations

import json
import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from raydml.parallel import Group
from raydml.spec import JobSpec
from raydml.training.process_group import fixed_group
from raydml.training.worker import Job, Worker

CONTEXT = multiprocessing.get_context("forkserver")
LIBRARY = [f"transformers.models.{name}.modeling_{name}" for name in ("bert", "resnet", "vit")]
# The optimiser imports torch._dynamo.
SHARED = ["torch.distributed.fsdp", "torch.distributed.pipelining"]
CONTEXT.set_forkserver_preload(["tests.distributed.harness", "torch._dynamo", *LIBRARY, *SHARED])
SECONDS = 300


def _child(
    rank: int, size: int, slices: int, store: str, work: Callable[..., Any], given: Any, pipe: Connection
) -> None:
    torch.set_num_threads(1)
    try:
        processes, group = fixed_group(rank, size, slices, dist.FileStore(store, size))
        pipe.send((True, work(group, given)))
        processes.leave()
    except BaseException:
        pipe.send((False, traceback.format_exc()))


def run_processes(size: int, work: Callable[..., Any], given: Any, folder: Path, slices: int = 8) -> list[Any]:
    """`work(group, given)` in `size` processes that form one group; their results in rank order.

    `work` must be importable. Raises AssertionError with the first traceback.
    """
    store = folder / f"store-{size}-{len(list(folder.iterdir()))}"
    pipes, processes = [], []
    for rank in range(size):
        ours, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(
            target=_child, args=(rank, size, slices, str(store), work, given, theirs), daemon=False
        )
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        return [_result(pipe) for pipe in pipes]
    finally:
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()


def _result(pipe: Connection) -> Any:
    assert pipe.poll(SECONDS), f"no answer within {SECONDS} s"
    good, value = pipe.recv()
    assert good, value
    return value


def write_images(folder: Path, classes: int = 20, each: int = 6, size: int = 8, seed: int = 0) -> Path:
    """Small noisy images around one prototype a class, as arrays with splits; returns the .npz."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    prototypes = random.uniform(40, 215, (classes, size, size))
    images = (prototypes[labels] + random.normal(0, 70, (len(labels), size, size))).clip(0, 255).astype(np.uint8)
    names = ("train", "train", "train", "validation", "test")
    splits = np.array([names[label % len(names)] for label in labels])
    path = folder / "images.npz"
    np.savez(path, inputs=images, labels=labels, splits=splits)
    return path


def small_spec(data: Path, /, **changes: Any) -> JobSpec:
    """A spec of a small job on those images; `changes` replace whole sections, or parts by dotted path."""
    document: dict[str, Any] = {
        "name": "small",
        "seed": 5,
        "data": {"kind": "arrays", "path": str(data), "image_size": 8, "grayscale": True},
        "batch": {"classes": 8, "samples": 4, "virtual_workers": 8},
        "model": {"backbone": {"kind": "mlp", "hidden": [16], "dropout": 0.1}, "dimension": 8},
        "loss": {"kind": "triplet", "margin": 0.2, "miner": {"kind": "semihard"}},
        "parallel": {"workers": {"min": 1, "max": 4}},
        "train": {"steps": 20, "evaluate_every": 0, "checkpoint_every": 1000},
        "evaluate": {"baseline": False},
    }
    for path, value in changes.items():
        *parents, last = path.split(".")
        section = document
        for name in parents:
            section = section[name]
        section[last] = value
    return JobSpec.model_validate(document)


def train_case(
    group: Group, spec: JobSpec, folder: Path, until: int | None = None, reports: list[Any] | None = None
) -> dict[str, Any]:
    """Train one spec from the start in a formed group; losses, the state's SHA-256 and its tensors."""
    worker = Worker(Job(spec, folder, folder, None), group, torch.device("cpu"))
    losses: list[float] = []
    norms: list[float] = []

    def after(report: Any) -> bool:
        losses.append(report.loss)
        norms.append(report.gradient_norm)
        if reports is not None:
            reports.append(report)
        return True

    worker.trainer.run(until or spec.train.steps, after)
    state = worker.trainer.state
    tensors = {name: value.detach().clone().numpy() for name, value in state.tensors().items()}
    weights = {name: value.detach().cpu().numpy() for name, value in worker.trainer.weights().items()}
    return {"sha256": state.digest(), "losses": losses, "norms": norms, "tensors": tensors, "weights": weights}


def on_its_mesh(group: Group, spec: JobSpec) -> Group:
    """The same workers as the grid of a spec, over the process group that is formed already."""
    found = Group(group.rank, group.size, spec.batch.virtual_workers, spec.parallel.mesh)
    if group.size > 1:
        found.connect()
    return found


def train_cases(group: Group, given: tuple[dict[str, str], str]) -> dict[str, tuple[str, list[float]]]:
    """Several specs (as JSON by name) one after another in one group: SHA-256 and losses of each."""
    documents, folder = given
    results = {}
    for name, document in documents.items():
        spec = JobSpec.model_validate(json.loads(document))
        outcome = train_case(group, spec, Path(folder))
        results[name] = (outcome["sha256"], outcome["losses"])
    return results
