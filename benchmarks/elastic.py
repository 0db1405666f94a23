"""What a change of workers costs: ours against plain Ray Train V2, the same job on the same cluster, in one run.

    python benchmarks/elastic.py [--only worker_killed node_added ...]

A head without room and nodes of one CPU each. For each event a fresh run of either contender trains; the event
happens; the longest time in which nobody finished a step, and the steps that were taken twice, are read from the log
that both write: a line per step. The peer is Ray Train V2 as its documentation has it (elastic `num_workers`,
checkpoints every 20 steps as ours), with its checks of health and size made as quick as ours. Its workers train with
raydml's own loop, so that a step costs the same.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

import raydml
from raydml.errors import Interrupted
from raydml.training.fleet.placement import TRAIN_ENVIRONMENT
from raydml.training.record import read_lines

STEPS, CHECKPOINT_EVERY = 4000, 20
QUICK = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 5000,
    "health_check_failure_threshold": 4,
}
ENVIRONMENT = TRAIN_ENVIRONMENT | {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
PATIENCE = 150.0  # seconds for a contender to come back to its number of workers


@dataclass(frozen=True)
class Cost:
    """Of one event: the longest time without a finished step, the usual one, steps taken twice, seconds until the
    group has the size that it should have, and how many of these the event itself took (a node's raylet to start)."""

    gap: float
    step: float
    lost: int
    recovered: float
    event: float


class Machines:
    """The cluster: nodes of one CPU come and go."""

    def __init__(self) -> None:
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 << 20, "_system_config": QUICK}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        ray.init(address=self.cluster.address, logging_level="ERROR", log_to_driver=False)
        self.nodes: dict[str, Any] = {}
        self._draining: list[threading.Timer] = []

    def set(self, count: int) -> None:
        """Have exactly that many nodes, and none that is about to be taken away."""
        for timer in self._draining:
            timer.join()
        self._draining.clear()
        while len(self.nodes) > count:
            self.kill(next(iter(self.nodes)))
        while len(self.nodes) < count:
            self.add()
        deadline = time.monotonic() + 60
        while ray.cluster_resources().get("CPU", 0) != count:
            assert time.monotonic() < deadline, ray.cluster_resources()
            time.sleep(0.2)

    def add(self) -> None:
        """One more node."""
        node = self.cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
        self.nodes[node.node_id] = node

    def kill(self, node: str) -> None:
        """Its raylet dies, and its workers with it."""
        self.cluster.remove_node(self.nodes.pop(node), allow_graceful=False)

    def drain(self, node: str) -> None:
        """The node is told that it will be taken away in half a minute; then it is."""
        deadline = int(time.time() * 1000) + 30_000
        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        accepted, why = ray._raylet.GcsClient(address=self.cluster.address).drain_node(node, reason, "bench", deadline)
        assert accepted, why
        timer = threading.Timer(30.0, lambda: self.kill(node))
        timer.start()
        self._draining.append(timer)


def job(data: Path, name: str, most: int) -> dict[str, Any]:
    """What both train."""
    return {
        "name": name,
        "seed": 3,
        "data": {"kind": "arrays", "path": str(data), "image_size": 32, "grayscale": True},
        "batch": {"classes": 16, "samples": 4, "virtual_workers": 8},
        "model": {"backbone": {"kind": "small_cnn", "width": 16}, "dimension": 64},
        "loss": {"kind": "multi_similarity"},
        "parallel": {"workers": {"min": 1, "max": most}},
        "train": {"steps": STEPS, "evaluate_every": 0, "checkpoint_every": CHECKPOINT_EVERY},
        "evaluate": {"baseline": False, "bootstrap": 0},
    }


def write_data(folder: Path) -> Path:
    """Noisy images around a prototype for each class."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(60), 8)
    prototypes = random.uniform(40, 215, (60, 32, 32))
    images = (prototypes[labels] + random.normal(0, 70, (len(labels), 32, 32))).clip(0, 255).astype(np.uint8)
    splits = np.array(["train", "train", "test"])[labels % 3]
    np.savez(folder / "images.npz", inputs=images, labels=labels, splits=splits)
    return folder / "images.npz"


class Ours:
    """`raydml.train` in a thread."""

    def __init__(self, data: Path, folder: Path, most: int, address: str) -> None:
        self.folder = folder / "runs" / "ours"
        spec = job(data, "ours", most)
        os.environ["RAYDML_HOME"] = str(folder)
        self._thread = threading.Thread(target=self._train, args=(spec, address))
        self._thread.start()

    def _train(self, spec: dict[str, Any], address: str) -> None:
        with suppress(Interrupted):
            raydml.train(spec)

    def steps(self) -> list[dict[str, Any]]:
        """Lines of the log: step, time, workers."""
        path = self.folder / "metrics.jsonl"
        return [line for line in read_lines(path)[0] if "loss" in line] if path.exists() else []

    def worker(self) -> int:
        """A process that trains: the newest of Ray Train's."""
        events = [json.loads(line) for line in (self.folder / "events.jsonl").read_text().splitlines()]
        names = [name for event in events for name in event["members"] if name.startswith("group-")]
        return int(names[-1].rpartition("-")[2])

    def resize(self, workers: int) -> None:
        """By request."""
        raydml.resize("ours", workers)

    def stop(self) -> None:
        """On request."""
        (self.folder / "stop").touch()
        self._thread.join(60)


def peer_loop(config: dict[str, Any]) -> None:
    """One worker of plain Ray Train: DDP's group, a checkpoint reported every so many steps, resumed from the last."""
    import ray.train

    from raydml.data import open_dataset
    from raydml.models import build_model
    from raydml.parallel import Group
    from raydml.spec import JobSpec
    from raydml.training.checkpoints import Checkpoints
    from raydml.training.loop import StepReport, Trainer
    from raydml.training.worker import set_numerics

    context = ray.train.get_context()
    spec = JobSpec.model_validate(config["job"])
    set_numerics(spec)
    dataset = open_dataset(spec.data, Path(config["folder"]))
    group = Group(context.get_world_rank(), context.get_world_size(), spec.batch.virtual_workers)
    model = build_model(spec.model, dataset.input_shape, spec.seed)
    trainer = Trainer(spec, dataset, model, group, torch.device("cpu"))
    last = ray.train.get_checkpoint()
    if last is not None:
        with last.as_directory() as folder:
            checkpoints = Checkpoints(Path(folder), 1)
            checkpoints.load(checkpoints.steps()[-1], trainer.state)

    def after(report: StepReport) -> bool:
        if group.rank == 0:
            line = {"step": report.step, "time": time.time(), "workers": group.size, "pid": os.getpid()}
            with (Path(config["folder"]) / "steps.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        if report.step % CHECKPOINT_EVERY == 0:
            with tempfile.TemporaryDirectory() as folder:
                if group.rank == 0:
                    Checkpoints(Path(folder), 1).save(trainer.state, None)
                saved = ray.train.Checkpoint.from_directory(folder) if group.rank == 0 else None
                ray.train.report({"step": report.step}, checkpoint=saved)
        return not (Path(config["folder"]) / "stop").exists()

    trainer.run(STEPS, after)


class Peer:
    """Plain Ray Train V2."""

    def __init__(self, data: Path, folder: Path, most: int, address: str) -> None:
        self.folder = folder
        self._thread = threading.Thread(target=self._train, args=(job(data, "peer", most), most))
        self._thread.start()

    def _train(self, spec: dict[str, Any], most: int) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        scaling = ScalingConfig(
            num_workers=(1, most) if most > 1 else 1,
            resources_per_worker={"CPU": 1},
            elastic_resize_monitor_interval_s=1.0,
        )
        TorchTrainer(
            peer_loop,
            train_loop_config={"job": spec, "folder": str(self.folder)},
            torch_config=TorchConfig(backend="gloo", timeout_s=60),
            scaling_config=scaling,
            run_config=RunConfig(
                name="peer", storage_path=str(self.folder), failure_config=FailureConfig(max_failures=20)
            ),
        ).fit()

    def steps(self) -> list[dict[str, Any]]:
        """Lines of the log: step, time, workers, pid."""
        path = self.folder / "steps.jsonl"
        return read_lines(path)[0] if path.exists() else []

    def worker(self) -> int:
        """A process that trains: the one that logs."""
        return int(self.steps()[-1]["pid"])

    def stop(self) -> None:
        """At the next step."""
        (self.folder / "stop").touch()
        self._thread.join(60)


Contender = Ours | Peer


@dataclass(frozen=True)
class Change:
    """One kind of event: nodes before it, largest group, how it happens, and how many workers should train after it."""

    nodes: int
    most: int
    happen: Callable[[Machines, Contender], None]
    after: int
    peer: bool = True


CHANGES = {
    "worker_killed": Change(2, 2, lambda machines, run: os.kill(run.worker(), signal.SIGKILL), 2),
    "node_added": Change(1, 2, lambda machines, run: machines.add(), 2),
    "node_killed": Change(2, 2, lambda machines, run: machines.kill(list(machines.nodes)[-1]), 1),
    "node_drained": Change(2, 2, lambda machines, run: machines.drain(list(machines.nodes)[-1]), 1),
    "resized": Change(2, 2, lambda machines, run: run.resize(1), 1, peer=False),  # type: ignore[union-attr]
}


def wait(until: Callable[[], bool], seconds: float, what: str) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not until():
        if time.monotonic() > deadline:
            print(f"{what} did not come within {seconds:.0f} s", file=sys.stderr)
            return False
        time.sleep(0.05)
    return True


def measure(kind: type[Contender], change: Change, machines: Machines, data: Path) -> Cost | None:
    """One run, one event; None where the contender never came back."""
    machines.set(change.nodes)
    folder = Path(tempfile.mkdtemp(prefix="raydml-elastic-"))
    run = kind(data, folder, change.most, machines.cluster.address)
    before = min(change.nodes, change.most)
    try:
        if not wait(lambda: bool(run.steps()) and run.steps()[-1]["workers"] == before, 120, f"{before} workers"):
            return None
        seen = len(run.steps())
        wait(lambda: len(run.steps()) >= seen + 50, 60, "fifty steps")
        began = time.time()
        change.happen(machines, run)
        event = time.time() - began
        if not wait(
            lambda: came_back(run.steps(), began, change.after) is not None, PATIENCE, f"{change.after} workers"
        ):
            return None
        time.sleep(3.0)
        return cost(run.steps(), began, change.after, event)
    finally:
        run.stop()
        shutil.rmtree(folder, ignore_errors=True)


def came_back(lines: list[dict[str, Any]], began: float, after: int) -> float | None:
    """Seconds from the event to the first step of a group of the right size that is not the group before it."""
    for last, line in pairwise(lines):
        new = last["workers"] != after or line["time"] - last["time"] > 1.0
        if line["time"] > began and line["workers"] == after and new:
            return float(line["time"] - began)
    return None


def cost(lines: list[dict[str, Any]], began: float, after: int, event: float) -> Cost:
    """What the log says of an event that began then and took so many seconds itself."""
    gaps = [(line["time"], line["time"] - last["time"]) for last, line in pairwise(lines)]
    usual = sorted(gap for ended, gap in gaps if ended <= began)
    steps = [line["step"] for line in lines]
    return Cost(
        gap=max(gap for ended, gap in gaps if ended > began),
        step=usual[len(usual) // 2],
        lost=len(steps) - len(set(steps)),
        recovered=came_back(lines, began, after) or 0.0,
        event=event,
    )


@contextmanager
def machines() -> Iterator[Machines]:
    """A cluster of its own, with its own temporary folder."""
    scratch = Path(tempfile.mkdtemp(prefix="raydml-bench-"))
    (scratch / "ray").mkdir()
    os.environ.update({**ENVIRONMENT, "RAY_TMPDIR": str(scratch)})
    found = Machines()
    try:
        yield found
    finally:
        ray.shutdown()
        found.cluster.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(CHANGES), choices=list(CHANGES))
    chosen = parser.parse_args().only
    data = write_data(Path(tempfile.mkdtemp(prefix="raydml-data-")))
    heads = ["longest gap s", "steps lost", "new size after s"]
    print(f"| event | {' | '.join([f'ours: {head}' for head in heads] + [f'peer: {head}' for head in heads])} |")
    print("|---|---|---|---|---|---|---|")
    with machines() as found:
        for name in chosen:
            change = CHANGES[name]
            ours = measure(Ours, change, found, data)
            peer = measure(Peer, change, found, data) if change.peer else None
            print(f"| {name} | {cells(ours)} | {cells(peer)} |", flush=True)


def cells(cost: Cost | None) -> str:
    """Three cells."""
    if cost is None:
        return "- | - | -"
    return f"{cost.gap:.2f} (a step: {cost.step:.3f}) | {cost.lost} | {cost.recovered:.1f} (event: {cost.event:.1f})"


if __name__ == "__main__":
    main()
