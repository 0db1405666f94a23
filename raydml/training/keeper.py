"""What goes with Ray Train into its controller: it tells the driver who the workers are, and ends the controller.

The controller runs on the driver's node, so the two meet in a folder: `workers.json` from here, an empty file `over`
from the driver. Left alone, a controller of replica groups waits for ever for room for a lost worker, with its event
loop blocked, though the others have finished.
"""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ray.train.v2._internal.execution.callback import ControllerCallback, ReplicaGroupCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision
from ray.train.v2._internal.execution.worker_group import ExecutionGroup, WorkerGroup
from ray.util.placement_group import PlacementGroup, remove_placement_group

from raydml.errors import RunError
from raydml.files import write_json

EVERY = 0.1  # seconds between looks for the file `over`
PATIENCE = 1.0  # seconds that workers have to return by themselves
GIVE_UP = 20.0  # seconds after which the controller's process just ends


@dataclass(frozen=True)
class Workers:
    """The controller's process, its workers (name -> node id), and the placement group that holds their room."""

    controller: int | None = None
    nodes: dict[str, str] = field(default_factory=dict)
    room: str | None = None


def read_workers(folder: Path) -> Workers:
    """What the controller wrote last; nobody, before it wrote."""
    path = folder / "workers.json"
    return Workers(**json.loads(path.read_text())) if path.exists() else Workers()


def say_over(folder: Path) -> None:
    """Tell the controller that the run is over."""
    (folder / "over").touch()


def worker_name(rank: int, node: str, pid: int) -> str:
    """Name of a group worker, another one for every process: known alike to the worker and to the controller."""
    return f"group-{rank:05d}-{node[:8]}-{pid}"


class Keeper(ControllerCallback, WorkerGroupCallback, ReplicaGroupCallback):  # type: ignore[misc]
    """Ray Train's callback; one per controller."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_rank: dict[int, tuple[str, str]] = {}
        self._placement_group: PlacementGroup | None = None

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        """Say which process this is, and wait for the end beside the controller's event loop."""
        self._write()
        threading.Thread(target=self._end_when_over, daemon=True, name="raydml-keeper").start()

    def after_worker_group_start(self, worker_group: WorkerGroup) -> None:
        """All workers are placed; none works yet."""
        self._placement_group = worker_group.get_worker_group_state().placement_group_handle.placement_group
        self._by_rank = {}
        self.after_execution_group_start(worker_group)

    def after_execution_group_start(self, execution_group: ExecutionGroup) -> None:
        """One worker was replaced, or all were started."""
        for worker in execution_group.get_workers():
            rank, found = worker.distributed_context.world_rank, worker.metadata
            self._by_rank[rank] = worker_name(rank, found.node_id, found.pid), found.node_id
        self._write()

    def before_controller_execute_resize_decision(self, resize_decision: ResizeDecision) -> None:
        """Start and replace no worker of a run that is over: an error here makes the controller end in good order."""
        if self._over():
            raise RunError("the run is over")

    def _over(self) -> bool:
        return (self._folder / "over").exists()

    def _write(self) -> None:
        room = self._placement_group and self._placement_group.id.hex()
        write_json(self._folder / "workers.json", asdict(Workers(os.getpid(), dict(self._by_rank.values()), room)))

    def _end_when_over(self) -> None:
        """Without their placement group all workers end, and whoever waits for room in it gets an error."""
        while not self._over():
            time.sleep(EVERY)
        time.sleep(PATIENCE)
        if self._placement_group is not None:
            remove_placement_group(self._placement_group)
        time.sleep(GIVE_UP)
        os._exit(1)
