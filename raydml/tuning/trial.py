"""The folder of a trial in; trained up to a step, with what it scored on validation classes in run.json, out.

One process, whatever the number of workers of the winner's run will be: the bits do not depend on it.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raydml.errors import RaydmlError
from raydml.parallel import Group
from raydml.runs import held
from raydml.spec import JobSpec
from raydml.specfile import load_spec
from raydml.training.checkpoints import Checkpoints
from raydml.training.record import RunRecord, read_lines
from raydml.training.worker import Job, Worker

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

    def _train(self, record: RunRecord, until: int) -> None:
        spec = load_spec(record.folder / "spec.yaml")
        checkpoints = Checkpoints(record.folder / "checkpoints", spec.train.keep_last)
        checkpoints.sweep()
        step, _ = checkpoints.whole_one(spec.name)
        record.clear_requests()
        record.forget_after(step or 0)
        job = Job(spec, record.folder, self.home, step, self.dataset, self.model, until)
        weights = 0
        if (step or 0) < until:
            worker = Worker(job, Group(0, 1, spec.batch.virtual_workers), _device(spec))
            worker.run()
            step = worker.trainer.state.step
            weights = sum(each.numel() * each.element_size() for each in worker.trainer.model.parameters())
        record.change(**summary(record, spec, step or 0, weights))


def summary(record: RunRecord, spec: JobSpec, step: int, weights: int) -> dict[str, Any]:
    """What a trial says of itself after a piece of work."""
    lines = read_lines(record.metrics_path)[0] if record.metrics_path.exists() else []
    known = {"bytes": weights} if weights else {}
    return known | {
        "state": "trained" if step == spec.train.steps else "paused",
        "step": step,
        "evaluations": {line["step"]: line["validation"] for line in lines if "validation" in line},
        "seconds": round(sum(line.get("step_seconds", 0.0) for line in lines), 4),
    }


def _device(spec: JobSpec) -> torch.device:
    with contextlib.suppress(RuntimeError):
        if spec.parallel.device != "cpu" and torch.cuda.is_available():
            return torch.device("cuda")
    return torch.device("cpu")
