"""An elastic run of real processes without Ray: members that are started, killed, stopped, and join later."""

from __future__ import annotations

import importlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from raydml.membership import Authority, Event, FileLedger, Policy, Server
from raydml.parallel.sizes import unit
from raydml.spec import JobSpec
from raydml.training.checkpoints import Checkpoints
from raydml.training.elastic import Meeting, run_member
from raydml.training.record import RunRecord, read_lines
from raydml.training.worker import Job
from tests.distributed.harness import CONTEXT

SECONDS = 400  # far more than it takes: other things may run on the machine


class Condition(Protocol):
    """Something that a member's process is to be subject to."""

    def arm(self) -> None:
        """Called in that process before it begins."""


def _member(job: Job, meeting: Meeting, name: str, conditions: Sequence[Condition]) -> None:
    torch.set_num_threads(1)
    for condition in conditions:
        condition.arm()
    run_member(job, meeting, name, "here", torch.device("cpu"))


@dataclass(frozen=True)
class Fault:
    """SIGKILL of the own process at the n-th call of a function: in the middle of what others wait for."""

    module: str
    function: str
    call: int

    def arm(self) -> None:
        """Put the fault into this process."""
        module = importlib.import_module(self.module)
        real, calls = getattr(module, self.function), itertools.count(1)

        def deadly(*values: Any, **options: Any) -> Any:
            if next(calls) == self.call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*values, **options)

        setattr(module, self.function, deadly)


@dataclass
class Fleet:
    """The processes of one run, by member name, and its authority's server."""

    job: Job
    meeting: Meeting
    server: Server
    each: Sequence[Condition] = ()
    processes: dict[str, BaseProcess] = field(default_factory=dict)

    def start(self, count: int = 1, fault: Condition | None = None) -> list[str]:
        """Start that many more members, with that fault in them, and what `each` of them is subject to."""
        conditions = [*self.each, *([] if fault is None else [fault])]
        names = [f"worker-{len(self.processes) + index:05d}" for index in range(count)]
        for name in names:
            self.processes[name] = CONTEXT.Process(
                target=_member, args=(self.job, self.meeting, name, conditions), daemon=False
            )
            self.processes[name].start()
        return names

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to one member."""
        pid = self.processes[name].pid
        assert pid is not None
        os.kill(pid, number)

    def living(self) -> list[str]:
        """Members whose process lives, the oldest first."""
        return [name for name, process in self.processes.items() if process.is_alive()]

    def step(self) -> int:
        """The last step that is logged."""
        path = RunRecord(self.job.folder).metrics_path
        if not path.exists():
            return 0
        return max((line["step"] for line in read_lines(path)[0]), default=0)

    def wait(self, until: Callable[[], bool], what: str, seconds: float = SECONDS, *, failing: bool = False) -> None:
        """Wait for something to come true, in a run that goes on unless it is `failing`."""
        deadline = time.monotonic() + seconds
        while not until():
            assert failing or self.server.failure is None, self.server.failure
            assert time.monotonic() < deadline, (
                f"{what} did not come; at step {self.step()}, alive {self.living()}, events {self.server.events}"
            )
            time.sleep(0.005)

    def wait_for_step(self, step: int) -> None:
        """Wait until a step is logged."""
        self.wait(lambda: self.step() >= step, f"step {step}")

    def wait_for_size(self, size: int) -> None:
        """Wait until the group has that many members."""
        self.wait(lambda: self.server.view is not None and self.server.view.size == size, f"{size} members")

    def finish(self, seconds: float = SECONDS) -> dict[str, Any]:
        """Wait for the end; the run's record."""
        self.wait(lambda: self.server.over or not self.living(), "the end", seconds)
        assert self.server.over, f"nobody is left; at step {self.step()}, events {self.server.events}"
        assert self.server.outcome == "succeeded", (self.server.outcome, self.server.failure)
        for process in self.processes.values():
            process.join(10)
        return RunRecord(self.job.folder).read()

    @property
    def events(self) -> list[Event]:
        """All changes of the group so far."""
        return self.server.events

    @property
    def changes(self) -> list[Event]:
        """Those that changed who is in it: where a machine is held up for a whole lease, the same members meet anew."""
        return [event for event in self.events if event.cause != "broken"]


@contextmanager
def elastic_run(
    spec: JobSpec,
    folder: Path,
    first: int,
    most: int = 4,
    faults: Sequence[Condition] = (),
    host: str = "127.0.0.1",
    resume: int | None = None,
    each: Sequence[Condition] = (),
    model: nn.Module | None = None,
    **policy: Any,
) -> Iterator[Fleet]:
    """A run in this folder, with its authority; its first members are started, the last of them with these faults."""
    folder.mkdir(exist_ok=True)
    checkpoints = Checkpoints(folder / "checkpoints", spec.train.keep_last)

    def found(now: float) -> Authority:
        seats = spec.batch.virtual_workers * spec.parallel.mesh.cell
        chosen = Policy(first=first, most=most, num_slices=seats, unit=unit(spec), **policy)
        ledger = FileLedger(folder / "membership.json")
        durable = lambda: checkpoints.go_back(spec.name)[0]  # noqa: E731
        return Authority(spec.name, ledger, chosen, now, durable, time.time() - now)

    store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
    fleet: Fleet | None = None
    try:
        with Server(found, host) as server:
            job = Job(spec, folder, folder, resume, model=model)
            fleet = Fleet(job, Meeting(server.address, store.port), server, each)
            fleet.start(first - len(faults))
            for fault in faults:
                fleet.start(1, fault)
            yield fleet
    finally:
        for process in fleet.processes.values() if fleet else ():
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
            process.join(10)
