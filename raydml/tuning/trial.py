"""The folder of a trial in; trained up to a step, with what it scored on validation classes in run.json, out.

One process where that is possible, whatever the number of workers of the winner's run will be: the bits do not depend
on it. A trial of more workers, or of a strategy that needs them, has workers of its own.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raydml.data import Dataset, open_dataset
from raydml.errors import RaydmlError
from raydml.parallel import Group
from raydml.runs import held
from raydml.spec import JobSpec
from raydml.specfile import load_spec
from raydml.training.checkpoints import TENSORS, Checkpoints
from raydml.training.record import RunRecord, read_lines
from raydml.training.worker import Job, Worker
from raydml.tuning.admission import alone

TURN_SECONDS = 0.1
OPENED = 2  # data sets that a process keeps: trials may differ in folds and in augmentation
_opened: dict[tuple[Path, str], Dataset] = {}
SECONDS = 60.0  # that a trial waits for the process of an earlier attempt to be gone


@dataclass(frozen=True)
class Training:
    """Trains a trial; `home` is where built-in data lies, `dataset` and `model` are the user's own."""

    home: Path
    dataset: object | None = None
    model: nn.Module | None = None

    def __call__(self, folder: Path, until: int) -> None:
        """Train up to the step, or to a request to stop; what goes wrong is in run.json, and nothing is raised."""
        with held(folder, "trial", SECONDS) as record:
            facts = record.read()
            if facts.get("state") in ("trained", "failed") or facts.get("step", 0) >= until:
                return
            record.change(state="running", reason=None, started=facts.get("started", round(time.time(), 3)))
            try:
                self._train(record, until)
            except RaydmlError as error:
                record.change(state="failed", reason=f"{type(error).__name__}: {error}")
            except Exception:  # of the user's own model or data, mostly
                record.change(state="failed", reason=traceback.format_exc())

    def finish(self, folder: Path) -> None:
        """Train a trial to its end, export its model and measure that on test classes: what only winners may.

        May be repeated. Raises what training raises.
        """
        with held(folder, "trial", SECONDS) as record:
            if not record.read().get("trained"):
                self._train(record, None)

    def _train(self, record: RunRecord, until: int | None) -> None:
        """To the step; with None to the end, and beyond it what an ordinary run does with its model."""
        spec = load_spec(record.folder / "spec.yaml")
        checkpoints = Checkpoints(record.folder / "checkpoints", spec.train.keep_last)
        checkpoints.sweep()
        step, _ = checkpoints.whole_one(spec.name)
        known = record.read() if (step or 0) >= record.read().get("step", 0) else {}  # the newest may be damaged
        record.clear_requests()
        if record.mend() > (step or 0):
            record.forget_after(step or 0)
        job = Job(spec, record.folder, self.home, step, self.dataset, self.model, until)
        if until is None or (step or 0) < until:
            _train_alone(job) if alone(spec) else _train_group(job)
            step, _ = checkpoints.whole_one(spec.name)
        record.change(**summary(record, spec, checkpoints, step or 0, known))


def _train_alone(job: Job) -> None:
    """In this process; with a GPU where Ray gave it one."""
    gpu = job.spec.parallel.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    Worker(job, Group(0, 1, job.spec.batch.virtual_workers), device, _dataset(job)).run()


def _dataset(job: Job) -> Dataset:
    """Of the job: read once by a process that trains one trial after another, for reading looks at every item."""
    if job.dataset is not None:
        return open_dataset(job.spec.data, job.home, custom=job.dataset)
    name = job.home, job.spec.data.model_dump_json()
    if name not in _opened:
        if len(_opened) == OPENED:
            _opened.pop(next(iter(_opened)))
        _opened[name] = open_dataset(job.spec.data, job.home)
    return _opened[name]


def _train_group(job: Job) -> None:
    """By workers of its own, placed and watched as those of any run; this process is their driver."""
    from raydml.training.driver import Driver
    from raydml.training.fleet.placement import cluster

    with cluster(job.spec, None) as placement, Driver(job, placement, lambda step: []) as driver:
        while not driver.over:
            driver.tick()
            time.sleep(TURN_SECONDS)
        driver.check()


def summary(
    record: RunRecord, spec: JobSpec, checkpoints: Checkpoints, step: int, known: Mapping[str, Any]
) -> dict[str, Any]:
    """What a trial says of itself after a piece of work; `known` is what it said after the one before.

    `read` bytes of its metrics are in it: many pieces read each line once.
    """
    lines, read = read_lines(record.metrics_path, known.get("read", 0)) if record.metrics_path.exists() else ([], 0)
    evaluated = {str(line["step"]): line["validation"] for line in lines if "validation" in line}
    seconds = sum(line.get("step_seconds", 0.0) for line in lines)
    return {
        "state": "trained" if step == spec.train.steps else "paused",
        "step": step,
        "evaluations": known.get("evaluations", {}) | evaluated,
        "seconds": round(known.get("seconds", 0.0) + seconds, 4),
        "bytes": _bytes_of_model(checkpoints.path(step) / TENSORS) if step else 0,
        "read": read,
    }


def _bytes_of_model(path: Path) -> int:
    """Of the weights in a checkpoint, by its header: eight bytes of length, then JSON with each tensor's place."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(
        place["data_offsets"][1] - place["data_offsets"][0]
        for name, place in header.items()
        if name.startswith("model.")
    )
