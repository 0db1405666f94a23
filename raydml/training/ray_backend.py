"""A job on Ray Train: TorchTrainer places and watches the workers, our own membership forms their process group."""

from __future__ import annotations

import asyncio
import shutil
from typing import Any

import ray
import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from raydml.errors import RaydmlError
from raydml.membership import Roster, View
from raydml.training.group import MembershipConfig
from raydml.training.placement import Placement
from raydml.training.process_group import form_group, leave_group
from raydml.training.record import RunRecord
from raydml.training.worker import Job, run_worker, set_numerics


class RosterServer:
    """The one Roster of a run, and the store in which its groups meet; an actor beside the driver."""

    def __init__(self, expected: int) -> None:
        self._roster = Roster(expected)
        self._closed: dict[int, asyncio.Event] = {}
        self._host = ray.util.get_node_ip_address()
        self._store = TCPStore(self._host, 0, is_master=True, wait_for_workers=False)

    async def address(self) -> tuple[str, int]:
        """Host and port of the store."""
        return self._host, self._store.port

    async def arrive(self, worker: str, step: int) -> View:
        """Wait until the view is complete, and return it."""
        closed = self._closed.setdefault(self._roster.epoch, asyncio.Event())
        if self._roster.arrive(worker, step) is not None:
            closed.set()
        await closed.wait()
        assert self._roster.view is not None
        return self._roster.view


def worker_main(config: dict[str, Any]) -> None:
    """What Ray Train runs in each worker: meet the others, train, leave."""
    job: Job = config["job"]
    server = config["server"]
    set_numerics(job.spec)
    name = f"worker-{ray.train.get_context().get_world_rank():05d}"
    host, port = ray.get(server.address.remote())
    view = ray.get(server.arrive.remote(name, job.resume or 0))
    device = ray.train.torch.get_device() if config["use_gpu"] else torch.device("cpu")
    store = TCPStore(host, port, is_master=False)
    try:
        group = form_group(
            view, name, job.spec.batch.virtual_workers, store, "nccl" if device.type == "cuda" else "gloo"
        )
        state = run_worker(job, group, device)
        if group.rank == 0:
            RunRecord(job.folder).change(attempt=state)
    except RaydmlError as error:
        RunRecord(job.folder).fail(error)
        raise
    finally:
        leave_group()


def fit(job: Job, placement: Placement) -> None:
    """Run one attempt of the job to its end; raises what Ray Train raises when a worker failed."""
    server = ray.remote(RosterServer).options(num_cpus=0, max_concurrency=1024).remote(placement.workers)
    scratch = job.folder / "ray"
    try:
        TorchTrainer(
            worker_main,
            train_loop_config={"job": job, "server": server, "use_gpu": placement.use_gpu},
            torch_config=MembershipConfig(),
            scaling_config=ScalingConfig(
                num_workers=placement.workers, use_gpu=placement.use_gpu, resources_per_worker=placement.resources
            ),
            # Ray's own record of the run would make a second attempt resume the first: each starts clean.
            run_config=RunConfig(
                name="attempt", storage_path=str(scratch), failure_config=FailureConfig(max_failures=0)
            ),
        ).fit()
    finally:
        ray.kill(server)
        shutil.rmtree(scratch, ignore_errors=True)
