"""A job and a number of workers -> what its steps take, in fresh processes of this machine that form one group.

Processes are forked from one that has imported torch; each trial has new ones, so that peak memory is its own.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch
from torch import nn
from torch._C._distributed_c10d import FileStore

from raydml.data import Dataset
from raydml.errors import RaydmlError
from raydml.models import build_model
from raydml.parallel import PeerLost
from raydml.spec import JobSpec
from raydml.training.loop import StepReport, Trainer
from raydml.training.process_group import bytes_sent, fixed_group
from raydml.training.worker import set_numerics

WARM = 2  # steps that are not counted: they make optimiser states and warm caches
_CONTEXT = multiprocessing.get_context("forkserver")
_LEAVING = 5.0  # seconds that a process has to end by itself
DIED = "a worker died: was the memory enough?"


@dataclass(frozen=True)
class Work:
    """A job to try: `steps` are counted. The dataset pickles, and so does a custom model."""

    spec: JobSpec
    dataset: Dataset
    model: nn.Module | None
    steps: int


@dataclass(frozen=True)
class Cost:
    """What one worker spent: wall seconds of its fastest step, means of CPU seconds and bytes; and its peak memory.

    The fastest, as what else runs on the machine only adds; `waited` is the share of time that it waited for a core.
    """

    seconds: float
    cpu: float
    waited: float
    memory: int
    sent: int | None


def run_trial(work: Work, folder: Path, limit: float) -> list[Cost] | str:
    """The cost of each worker, or why there is none; `folder` is empty. Whatever happens, no process is left."""
    size = work.spec.parallel.workers.max
    store, deadline = str(folder / "store"), time.monotonic() + limit
    _CONTEXT.set_forkserver_preload([__name__, "torch._dynamo"])
    pipes, processes = [], []
    try:
        for rank in range(size):
            ours, theirs = _CONTEXT.Pipe()
            process = _CONTEXT.Process(target=_process, args=(rank, size, store, work, theirs))
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        return _costs(pipes, deadline, limit)
    finally:
        for process in processes:
            process.join(0 if time.monotonic() > deadline else _LEAVING)
            if process.is_alive():
                process.kill()
                process.join()


def _costs(pipes: list[Connection], deadline: float, limit: float) -> list[Cost] | str:
    """What all say, or the reason of one that fails: it is in its pipe before the others miss it."""
    costs: dict[int, Cost] = {}
    while len(costs) < len(pipes):
        waiting = {pipe: rank for rank, pipe in enumerate(pipes) if rank not in costs}
        if not wait(list(waiting), max(0.0, deadline - time.monotonic())):
            return f"not done within {limit:g} s"
        said = {pipe: _said(pipe) for pipe in waiting if pipe.poll()}
        reasons = [found for found in said.values() if isinstance(found, str)]
        if reasons:
            return min(reasons, key=lambda reason: reason == DIED)
        costs |= {waiting[pipe]: found for pipe, found in said.items() if isinstance(found, Cost)}
    return [costs[rank] for rank in range(len(pipes))]


def _said(pipe: Connection) -> Cost | str:
    try:
        found: Cost | str = pipe.recv()
    except EOFError:
        return DIED
    return found


def _process(rank: int, size: int, store: str, work: Work, pipe: Connection) -> None:
    warnings.simplefilter("ignore")  # a library's, which training tells too
    try:
        pipe.send(_try(rank, size, store, work))
    except PeerLost:
        return  # the other one says why
    except RaydmlError as error:
        pipe.send(error.message)
    except Exception as error:  # else the parent would learn only that the process ended
        pipe.send(f"{type(error).__name__}: {error}"[:500])


def _try(rank: int, size: int, store: str, work: Work) -> Cost:
    spec, device = work.spec, _device(work.spec, rank, size)
    set_numerics(spec)
    axes, slices = spec.parallel.mesh, spec.batch.virtual_workers
    backend = "nccl" if device.type == "cuda" else "gloo"
    processes, group = fixed_group(rank, size, slices, FileStore(store, size), backend, axes)
    before, seconds = _resident(), list[float]()
    model = build_model(spec.model, work.dataset.input_shape, spec.seed, custom=work.model)
    trainer = Trainer(spec, work.dataset, model, group, device)

    def after(report: StepReport) -> bool:
        seconds.append(report.step_seconds)
        return True

    trainer.run(WARM, after)
    group.vote()
    spent, sent, queued = time.process_time(), bytes_sent(), _queued()
    trainer.run(WARM + work.steps, after)
    spent, sent, queued = time.process_time() - spent, bytes_sent() - sent, _queued() - queued
    cuda = device.type == "cuda"
    memory = torch.cuda.max_memory_allocated(device) if cuda else max(0, _peak() - before)
    group.vote()
    processes.leave()
    waited = min(1.0, queued / sum(seconds[WARM:]))
    return Cost(min(seconds[WARM:]), spent / work.steps, waited, memory, None if cuda else sent // work.steps)


def _device(spec: JobSpec, rank: int, size: int) -> torch.device:
    """A GPU for each worker where there are so many, else the CPU."""
    if spec.parallel.device == "cpu" or torch.cuda.device_count() < size:
        return torch.device("cpu")
    torch.cuda.set_device(rank)
    return torch.device("cuda", rank)


def _queued() -> float:
    """Seconds that the training thread could have run so far, and had no core; 0 where the kernel does not count."""
    path = Path("/proc/self/schedstat")
    return int(path.read_text().split()[1]) / 1e9 if path.is_file() else 0.0


def _resident() -> int:
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _peak() -> int:
    """The most bytes that ever lay in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
