"""What goes with Ray Train into its controller: it tells the driver which process that is, and who its workers are.

The controller runs on the driver's node, so what is said is a file: `workers.json`, in the driver's scratch folder.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback, ReplicaGroupCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.worker_group import ExecutionGroup

from raydml.files import write_json


@dataclass(frozen=True)
class Workers:
    """The controller's process and its actor's id; its workers, name -> node id."""

    controller: int | None = None
    actor: str | None = None
    nodes: dict[str, str] = field(default_factory=dict)


def read_workers(folder: Path) -> Workers:
    """What the controller wrote last; nobody, before it wrote."""
    path = folder / "workers.json"
    return Workers(**json.loads(path.read_text())) if path.exists() else Workers()


def worker_name(rank: int, node: str, pid: int) -> str:
    """Name of a group worker, another one for every process: known alike to the worker and to the controller."""
    return f"group-{rank:05d}-{node[:8]}-{pid}"


class Keeper(ControllerCallback, WorkerGroupCallback, ReplicaGroupCallback):  # type: ignore[misc]
    """Ray Train's callback; one per controller."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_rank: dict[int, tuple[str, str]] = {}

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        """Say which process this is."""
        self._write()

    def after_execution_group_start(self, execution_group: ExecutionGroup) -> None:
        """All workers were placed, or one was replaced; those that are new do not work yet."""
        for worker in execution_group.get_workers():
            rank, found = worker.distributed_context.world_rank, worker.metadata
            self._by_rank[rank] = worker_name(rank, found.node_id, found.pid), found.node_id
        self._write()

    def _write(self) -> None:
        actor = ray.get_runtime_context().get_actor_id()
        workers = Workers(os.getpid(), actor, dict(self._by_rank.values()))
        write_json(self._folder / "workers.json", asdict(workers))
