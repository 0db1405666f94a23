"""Where workers run: a Ray cluster by address, or a local one that is started and stopped with the run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import ray
import torch

from raydml.errors import ResourceError
from raydml.files import scratch_folder
from raydml.spec import JobSpec

# For Ray Train's controller. It looks after its workers every 2 s by default: too slow to replace one, and to notice
# that a short run has ended.
TRAIN_ENVIRONMENT = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}


@dataclass(frozen=True)
class Placement:
    """How many workers to start, and what each gets.

    `workers` fit now; `minimum` and `maximum` are those of the spec.
    """

    workers: int
    use_gpu: bool
    resources: dict[str, float]
    minimum: int
    maximum: int


def place(spec: JobSpec, cpus: float, gpus: float) -> Placement:
    """As many workers as fit, at most `workers.max`. Raises ResourceError, with the numbers, below `workers.min`."""
    wanted, device = spec.parallel.workers, spec.parallel.device
    use_gpu = device == "cuda" or (device == "auto" and gpus >= 1)
    if device == "cuda" and gpus < 1:
        raise ResourceError(
            "parallel.device is cuda, and there is no GPU here: use auto or cpu, or a cluster's address"
        )
    room = int(min(cpus / wanted.cpus, gpus) if use_gpu else cpus / wanted.cpus)
    if room < wanted.min:
        has = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if use_gpu else "")
        each = f"{wanted.cpus:g} CPUs" + (" and 1 GPU" if use_gpu else "")
        raise ResourceError(
            f"{wanted.min} workers of {each} each do not fit: the cluster has {has}, room for {room}. "
            f"Lower parallel.workers.min or parallel.workers.cpus, or give the address of a larger cluster."
        )
    resources = {"CPU": wanted.cpus} | ({"GPU": 1.0} if use_gpu else {})
    return Placement(min(wanted.max, room), use_gpu, resources, wanted.min, wanted.max)


@contextlib.contextmanager
def cluster(spec: JobSpec, address: str | None) -> Iterator[Placement]:
    """Connect to the cluster, or start a local one; on leaving, disconnect, and stop what was started here."""
    for name, value in TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None and not ray.is_initialized():
        # Refused before anything is started: a local Ray takes seconds.
        place(spec, os.cpu_count() or 1, torch.cuda.device_count())
    with _connected(address):
        total = ray.cluster_resources()
        yield place(spec, total.get("CPU", 0), total.get("GPU", 0))


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[None]:
    if ray.is_initialized():
        yield
    elif address:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        try:
            yield
        finally:
            ray.shutdown()
    else:
        with scratch_folder("raydml-ray-") as folder:  # a short path: Ray puts sockets below it
            ray.init(
                "local", _temp_dir=str(folder), include_dashboard=False, log_to_driver=False, logging_level="ERROR"
            )
            try:
                yield
            finally:
                ray.shutdown()
