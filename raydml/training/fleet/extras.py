"""One worker beyond the minimum: a plain Ray actor, which waits for room and ends with its work."""

from __future__ import annotations

import contextlib
import importlib
import os
from dataclasses import dataclass

import ray
import torch
from ray.exceptions import RayError

from raydml.training.fleet.placement import Placement
from raydml.training.fleet.staffing import Extra, Phase
from raydml.training.fleet.work import Work

DIED = "died"  # how an extra ended whose process or node died

# What takes seconds to import, and a worker needs: loaded before the worker counts as ready.
PRELOAD = ("torch._dynamo", "raydml.training.member")


class ExtraProcess:
    """The process of an extra; Ray never restarts it, `Fleet` starts another."""

    def __init__(self) -> None:
        for module in PRELOAD:
            importlib.import_module(module)

    def where(self) -> tuple[str, int]:
        """Its node's id and its process id."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def run(self, work: Work, name: str, use_gpu: bool) -> str:
        """The work, from start to end."""
        return work(name, torch.device("cuda:0" if use_gpu else "cpu"))


@dataclass
class ExtraHandle:
    """The driver's side of an extra. While there is no room it is pending, which an autoscaler sees as demand."""

    name: str
    node: str | None = None
    leaving_since: float | None = None

    def start(self, work: Work, placement: Placement) -> None:
        """Ask Ray for the process and give it its work; returns at once."""
        resources = dict(placement.resources)
        self._actor = (
            ray.remote(ExtraProcess)
            .options(
                num_cpus=resources.pop("CPU", 0.0),
                num_gpus=resources.pop("GPU", 0.0),
                resources=resources,
                max_restarts=0,
                max_task_retries=0,
            )
            .remote()
        )
        self._where = self._actor.where.remote()
        self._run = self._actor.run.remote(work, self.name, placement.use_gpu)

    def look(self) -> Extra:
        """How it stands now."""
        if self.node is None and _done(self._where):
            with contextlib.suppress(RayError):
                self.node = ray.get(self._where)[0]
        phase: Phase = "leaving" if self.leaving_since is not None else "working" if self.node else "pending"
        return Extra(self.name, phase)

    def ended(self) -> str | None:
        """How its work ended; `DIED` where its process or its node did; None while it goes on."""
        if not _done(self._run):
            return None
        try:
            return str(ray.get(self._run))
        except RayError:
            return DIED

    def stop(self) -> None:
        """End its process, whatever it does."""
        ray.kill(self._actor)

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, after at most so many seconds."""
        return bool(ray.wait([self._run], timeout=seconds, fetch_local=False)[0])


def _done(reference: ray.ObjectRef) -> bool:
    return bool(ray.wait([reference], timeout=0, fetch_local=False)[0])
