"""What a trial takes and what the cluster has in; how many run at once, or a refusal with the arithmetic, out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from raydml.errors import ResourceError
from raydml.spec import JobSpec

DRIVER_CPUS = 0.1  # of a trial that has workers of its own; Ray refuses none at all
ONE_PROCESS = ("ddp", "feature")  # strategies that train without a group, to the same bits


@dataclass(frozen=True)
class Need:
    """CPUs and GPUs of one trial: `own` are what Tune reserves, `workers` come besides, unknown to Tune."""

    own: float
    workers: int = 0
    worker_cpus: float = 0.0
    gpus: float = 0.0

    @property
    def cpus(self) -> float:
        """All together."""
        return self.own + self.workers * self.worker_cpus

    def __str__(self) -> str:
        group = f"a driver of {self.own:g} CPUs and {self.workers} workers of {self.worker_cpus:g} each"
        gpus = f" and {self.gpus:g} GPUs" if self.gpus else ""
        return f"{group if self.workers else 'one process'}, {self.cpus:g} CPUs{gpus}"


def alone(spec: JobSpec) -> bool:
    """Whether one process trains this trial; its bits are those of any number of workers."""
    return spec.parallel.workers.min == 1 and spec.parallel.strategy in ONE_PROCESS


def need_of(specs: Iterable[JobSpec], gpu_share: float, cluster_gpus: float) -> Need:
    """What the largest of these trials takes; a share of a GPU each where the cluster has GPUs and the spec allows."""
    largest = Need(0.0)
    for spec in specs:
        workers = spec.parallel.workers
        gpus = 0.0 if spec.parallel.device == "cpu" or cluster_gpus < 1 else gpu_share
        if alone(spec):
            found = Need(workers.cpus, gpus=gpus)
        else:
            found = Need(DRIVER_CPUS, workers.min, workers.cpus, workers.min if gpus else 0)
        largest = max(largest, found, key=lambda need: (need.cpus, need.gpus))
    return largest


def admitted(need: Need, cpus: float, gpus: float, wanted: int | None) -> int:
    """How many trials run at once: trials x (driver + workers) never exceed the cluster.

    Raises ResourceError where not one does, or not as many as are wanted.
    """
    room = int(cpus / need.cpus + 1e-9)
    if need.gpus:
        room = min(room, int(gpus / need.gpus + 1e-9))
    has = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if need.gpus else "")
    if room < 1:
        raise ResourceError(
            f"not one trial fits: it takes {need}, and the cluster has {has}. Lower parallel.workers of the spec or of "
            f"the space, or give the address of a larger cluster"
        )
    if wanted is not None and wanted > room:
        raise ResourceError(
            f"tune.concurrency = {wanted} trials at once take {wanted} x ({need}) = {wanted * need.cpus:g} CPUs, and "
            f"the cluster has {has}, room for {room}: lower it to {room}, or leave it out"
        )
    return wanted or room
