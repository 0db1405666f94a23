"""What steps of a job took on this machine, strategy by strategy: kept under home, found again by hardware and job."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from raydml.data import Dataset
from raydml.files import write_json
from raydml.parallel.memory import machine_bytes
from raydml.spec import JobSpec, MeshSpec

VERSION = 1
BUSY = 0.3  # share of time; two workers with their gloo threads wait for 0.22 of it on two cores that are all theirs
CHANCE = 1.05  # what two measurements of one thing differ by on a quiet machine
_PROCESSORS = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Trial:
    """One way to train a job, and what a step of it took: of the slowest or fullest worker, its fastest step.

    `changes` are options beside strategy, mesh and workers, as `--set` takes them; `rounds`: they are less exact than
    the job. Seconds are wall time; `cpu` is of all workers together; `waited` is the share of time that a worker could
    have run and had no core. `failed` says why there are no figures.
    """

    strategy: str
    mesh: MeshSpec
    workers: int
    exactness: str = "bitwise"
    changes: dict[str, Any] = field(default_factory=dict)
    rounds: bool = False
    seconds: float | None = None
    cpu: float | None = None
    waited: float | None = None
    memory: int | None = None
    sent: int | None = None
    failed: str | None = None

    @property
    def name(self) -> str:
        """As a person would say it."""
        axes = [f"{axis} {size}" for axis in ("tensor", "pipeline") if (size := getattr(self.mesh, axis)) > 1]
        return ", ".join([" x ".join([self.strategy, *axes]), *self.options])

    @property
    def options(self) -> tuple[str, ...]:
        """The changes, as `--set` takes them."""
        return tuple(f"{path}={json.dumps(value).strip(chr(34))}" for path, value in self.changes.items())


@dataclass(frozen=True)
class Measured:
    """All trials of a job on a machine, as they were measured."""

    key: str
    hardware: dict[str, Any]
    workers: int  # most, as the job says
    batch: int  # rows of a global batch
    trials: tuple[Trial, ...]

    @property
    def fastest(self) -> Trial | None:
        """Of all trials that are as exact as the job."""
        return _fastest(trial for trial in self.trials if not trial.rounds)

    @property
    def chosen(self) -> Trial | None:
        """What `strategy: auto` takes: it changes neither the number of workers nor any other option.

        ddp where nothing is faster by more than chance: it alone is bitwise, and survivors of a death go on.
        """
        own = [trial for trial in self.trials if trial.workers == self.workers and not trial.changes]
        best, ddp = _fastest(own), _fastest(trial for trial in own if trial.strategy == "ddp")
        return ddp if _seconds(ddp) <= CHANCE * _seconds(best) < math.inf else best

    @property
    def note(self) -> str | None:
        """Why not to trust the figures: None where workers that have a core each waited little for it."""
        fitting = [trial for trial in self.trials if trial.workers <= self.hardware.get("cpus", 0)]
        most = max((trial.waited or 0.0 for trial in fitting), default=0.0)
        if most <= BUSY:
            return None
        return f"the machine was busy: workers waited for a core {most:.0%} of the time; measure again when it is quiet"

    @property
    def why(self) -> str:
        """The reason of `auto`, in words, and what would be faster still."""
        assert self.chosen is not None and self.chosen.seconds is not None
        words = f"measured here, {self.chosen.seconds:.4g} s a step"
        best = self.fastest
        if best is None or best is self.chosen or best.seconds is None:
            return words
        changes = [] if best.workers == self.workers else [f"parallel.workers.max={best.workers}"]
        if (best.strategy, best.mesh) != (self.chosen.strategy, self.chosen.mesh):
            axes = {axis: getattr(best.mesh, axis) for axis in ("tensor", "pipeline")}
            changes += [f"parallel.strategy={best.strategy}"]
            changes += [f"parallel.mesh.{axis}={size}" for axis, size in axes.items() if size > 1]
        sets = " ".join(f"--set {change}" for change in (*changes, *best.options))
        return f"{words}; {best.seconds:.4g} s with {sets}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which `from_dict` takes."""
        rows = [{**asdict(trial), "mesh": trial.mesh.model_dump()} for trial in self.trials]
        return {**{name: getattr(self, name) for name in ("key", "hardware", "workers", "batch")}, "trials": rows}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Measured:
        """What `to_dict` gave."""
        trials = tuple(Trial(**{**row, "mesh": MeshSpec(**row["mesh"])}) for row in document["trials"])
        return cls(**{**document, "trials": trials})


def _seconds(trial: Trial | None) -> float:
    return math.inf if trial is None or trial.seconds is None else trial.seconds


def _fastest(trials: Iterable[Trial]) -> Trial | None:
    return min((trial for trial in trials if trial.seconds is not None), key=_seconds, default=None)


@cache
def hardware() -> dict[str, Any]:
    """What decides how long a step takes here, beside the job."""
    lines = _PROCESSORS.read_text().splitlines() if _PROCESSORS.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory": machine_bytes(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "torch": torch.__version__,
    }


def key_of(spec: JobSpec, dataset: Dataset) -> str:
    """SHA-256 over the hardware and all of a job that decides a step's time, but for what trials choose.

    Of the data, the shape and type of an input, and the number of classes that train.
    """
    document = spec.model_dump(mode="json", include={"batch": True, "model": True, "loss": True, "parallel": True})
    del document["model"]["card"]
    for name in ("strategy", "mesh", "pipeline", "offload", "balance", "patience", "tolerate"):
        del document["parallel"][name]
    document |= {"optimizer": spec.train.optimizer.model_dump(mode="json"), "clip_norm": spec.train.clip_norm}
    document |= {"input": [*dataset.input_shape, str(dataset.preprocessing.type)]}
    document |= {"classes": dataset.num_training_classes, "hardware": hardware(), "version": VERSION}
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def recall(home: Path, key: str) -> Measured | None:
    """What was measured under this key; None where nothing was, or by another version."""
    path = _path(home, key)
    if not path.is_file():
        return None
    return Measured.from_dict(json.loads(path.read_text()))


def remember(home: Path, measured: Measured) -> Path:
    """Keep it, instead of what was measured before; the file appears whole or not at all."""
    path = _path(home, measured.key)
    write_json(path, measured.to_dict())
    return path


def _path(home: Path, key: str) -> Path:
    return home / "measured" / f"{key[:32]}.json"
