"""The minimum of a run's workers: TorchTrainer keeps them alive, in replica groups of one, and replaces what dies."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train.torch
import torch
from ray._private.state import state as cluster_state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend, BackendConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback
from ray.util.placement_group import PlacementGroup, PlacementGroupID, remove_placement_group

from raydml.errors import RunError
from raydml.training.fleet.keeper import Keeper, Workers, read_workers, worker_name
from raydml.training.fleet.placement import Placement
from raydml.training.fleet.staffing import LEFT, LOST
from raydml.training.fleet.work import Work

UNUSED = (PlacementGroupCleanerCallback, DatasetsCallback)
PATIENCE = 2.0  # seconds that workers have to return by themselves when the run is over
CONTROLLER_SECONDS = 8.0  # for the process of a controller whose run has ended


class MembershipBackend(Backend):  # type: ignore[misc]
    """Leaves the process group alone; replica groups of one worker, so that Ray replaces only what died."""

    has_replica_groups = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Nothing: workers meet in our own membership."""


@dataclass
class MembershipConfig(TorchConfig):  # type: ignore[misc]
    """A TorchConfig whose backend does not form a process group."""

    @property
    def backend_cls(self) -> type[Backend]:
        """The backend above."""
        return MembershipBackend


class GroupTrainer(TorchTrainer):  # type: ignore[misc]
    """A TorchTrainer without what a run has no use for: Ray's cleaner of placement groups, and its data sets.

    `Group` frees the room itself. That cleaner is a detached actor. Without a dashboard it holds up the end of every
    run by 12 s, and where the controller was killed it stays as long as the cluster. For data sets, even for none, each
    start of a group waits for an actor that imports ray.data: 3 s of CPU.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, UNUSED)]


def group_main(config: dict[str, Any]) -> None:
    """What Ray Train runs in each worker of the group.

    A worker that left must not return: Ray Train would count it as finished, and replace it no more. It waits for its
    node to go, or for the run's end. One that was lost ends with an error, and Ray Train starts another.
    """
    work: Work = config["work"]
    rank = ray.train.get_context().get_world_rank()
    name = worker_name(rank, ray.get_runtime_context().get_node_id(), os.getpid())
    device = ray.train.torch.get_device() if config["use_gpu"] else torch.device("cpu")
    ended = work(name, device)
    if ended == LOST:
        raise RunError(f"{name} was counted as lost")
    if ended == LEFT:
        threading.Event().wait()


class Group:
    """One TorchTrainer in a thread of its own: in the main thread it would take the handler of Ctrl-C."""

    def __init__(self, work: Work, placement: Placement, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True)
        self._trainer = GroupTrainer(
            group_main,
            train_loop_config={"work": work, "use_gpu": placement.use_gpu},
            torch_config=MembershipConfig(),
            scaling_config=ScalingConfig(
                num_workers=placement.minimum, use_gpu=placement.use_gpu, resources_per_worker=placement.resources
            ),
            run_config=RunConfig(
                name="group",
                storage_path=str(folder),
                failure_config=FailureConfig(max_failures=-1),
                callbacks=[Keeper(folder)],
            ),
        )
        self.failure: str | None = None
        self._thread = threading.Thread(target=self._fit, daemon=True, name="raydml-group")
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether Ray Train still looks after the group."""
        return self._thread.is_alive()

    def workers(self) -> Workers:
        """Who is in the group now."""
        return read_workers(self._folder)

    def end(self, seconds: float) -> bool:
        """End Ray Train, its controller and all of its workers; whether that is so after at most so many seconds.

        Workers have `PATIENCE` to return by themselves. Then the controller is killed, and Ray stops what it started:
        one that waits for room for a lost worker does so for ever, with its event loop blocked, and hears no request.
        """
        start = time.monotonic()
        while self.running and time.monotonic() < start + seconds:
            self._thread.join(0.05)
            if time.monotonic() > start + PATIENCE:
                self._kill_controller()
        # A controller that has ended in good order goes after a second or two; one that waits for a metrics agent
        # which does not answer, after 20: by then the cluster may be gone.
        while not self.running and self._controller() is not None and time.monotonic() < start + CONTROLLER_SECONDS:
            time.sleep(0.02)
        self._kill_controller()
        if self.running:
            return False
        for room in _rooms(self.workers().actor):
            remove_placement_group(room)
        shutil.rmtree(self._folder, ignore_errors=True)
        return True

    def _controller(self) -> int | None:
        """The controller's process, while it lives: its number may have gone to another."""
        pid = self.workers().controller
        with contextlib.suppress(OSError):
            if pid is not None and b"TrainController" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        return None

    def _kill_controller(self) -> None:
        pid = self._controller()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:  # Ray ends the threads of a driver that leaves it with SystemExit
            # Only its text: its traceback would hold the controller's handle, and so keep the controller alive.
            self.failure = str(error) or repr(error)


def _rooms(actor: str | None) -> list[PlacementGroup]:
    """Placement groups that an actor made and did not remove: Ray keeps them as long as the driver lives."""
    raw = cluster_state._connect_and_get_accessor().get_placement_group_table()
    tables = [PlacementGroupTableData.FromString(table) for table in raw]
    return [
        PlacementGroup(PlacementGroupID(table.placement_group_id))
        for table in tables
        if table.creator_actor_id.hex() == actor and table.state != PlacementGroupTableData.REMOVED
    ]
