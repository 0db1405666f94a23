"""A job and a placement in; a run whose workers come, go and die out. The driver's half of an elastic run.

It holds the authority on who trains, keeps the workers at their number, takes up requests, records what happens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self

import ray
from torch.distributed import TCPStore  # type: ignore[attr-defined]

import raydml.errors
from raydml.errors import RaydmlError, RunError
from raydml.membership import Authority, Event, FileLedger, Policy, Server
from raydml.membership.budget import Budget, Limits, Poisoned, Spent
from raydml.parallel import fit, unit
from raydml.training.checkpoints import Checkpoints
from raydml.training.elastic import Meeting
from raydml.training.fleet.keeping import Fleet
from raydml.training.fleet.placement import Placement
from raydml.training.member import work
from raydml.training.record import RunRecord
from raydml.training.worker import Job

START_SECONDS = 60.0  # for all workers that there is room for; then a run begins with fewer
GRACE = 0.15  # seconds that a connection may be closed before its member counts as lost


class Driver:
    """One attempt at a job. Enter it, call `tick` until `over`, then `check`.

    `items` names the items of a step's batch. `note` and `lost`, the steps that an earlier attempt took in vain, go
    with the first event.
    """

    def __init__(
        self, job: Job, placement: Placement, items: Callable[[int], list[str]], note: str = "", lost: int = 0
    ) -> None:
        self._job, self._placement, self._items = job, placement, items
        tolerate = job.spec.parallel.tolerate
        self._budget = Budget(Limits(tolerate.failures_per_hour, tolerate.preemptions_per_hour, poison=tolerate.poison))
        self._notes, self._lost = [note] if note else [], lost
        self._record = RunRecord(job.folder)
        self._asked = self._record.resize_requested(self._limits)  # of an earlier attempt
        if self._asked is not None:
            self._placement = replace(placement, workers=min(placement.workers, self._asked))
        self._checkpoints = Checkpoints(job.folder / "checkpoints", job.spec.train.keep_last)
        self._logged = 0
        self._members: set[str] = set()  # all that ever joined
        self._stillborn: list[str] = []  # died since somebody last joined, without having done so

    def __enter__(self) -> Self:
        host = ray.util.get_node_ip_address()
        self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        self._server = Server(self._found, host).__enter__()
        meeting = Meeting(self._server.address, self._store.port)
        self._began = time.monotonic()
        self._fleet = Fleet(partial(work, self._job, meeting), self._placement, self._job.folder / "ray")
        if self._asked is not None:
            self._fleet.resize(self._asked)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell every worker that the run is over, those that come late too, and see that none is left."""
        self._server.ask(lambda authority, now: authority.finish(now))
        self._fleet.end()
        self._server.__exit__(kind, error, trace)
        self._log_events()

    @property
    def over(self) -> bool:
        """Whether the run has ended, one way or the other."""
        return self._server.over

    @property
    def interrupted(self) -> bool:
        """Whether it ended on request, its state kept."""
        return self._server.outcome == "interrupted"

    @property
    def _limits(self) -> tuple[int, int]:
        """Least and most workers of the spec, by which an earlier request to resize is known to be of this one."""
        workers = self._job.spec.parallel.workers
        return workers.min, workers.max

    def tick(self) -> None:
        """One turn, a few times a second; never waits."""
        wanted = self._record.resize_requested(self._limits)
        if wanted is not None:  # whoever asked has been told what is possible
            self._fleet.resize(wanted)
        now = time.monotonic()
        view = self._server.view
        turn = self._fleet.tick(now, view.members if view is not None else ())
        if view is None and now > self._began + START_SECONDS and len(turn.nodes) >= self._placement.minimum:
            self._server.ask(lambda authority, _: authority.settle_for(self._placement.minimum))
        self._server.ask(lambda authority, now: _tell(authority, turn.leave, turn.dead, now))
        self._log_events()
        self._count_stillborn(turn.dead)

    def check(self) -> None:
        """Raises the error that ended the run, if one did."""
        failure = self._server.failure
        if failure is not None:
            raise _named_error(failure)
        if self._server.crash is not None:
            raise self._server.crash
        if self._server.outcome is None:
            raise RunError(f"run {self._job.spec.name} was taken over by another driver: that one goes on")

    def _found(self, now: float) -> Authority:
        spec = self._job.spec
        patience = spec.parallel.patience
        policy = Policy(
            first=fit(spec, self._placement.workers).workers,
            most=fit(spec, self._placement.maximum).workers,
            num_slices=spec.batch.virtual_workers * spec.parallel.mesh.cell,
            unit=unit(spec),
            beat_timeout=patience,
            grace=GRACE,
            lease=0.75 * patience,
            balance=spec.parallel.balance,
            state=spec.state,
        )
        ledger = FileLedger(self._job.folder / "membership.json")
        return Authority(spec.name, ledger, policy, now, self._durable_step, time.time() - now)

    def _durable_step(self) -> int:
        """The newest whole checkpoint; damaged ones are named with the event."""
        step, damaged = self._checkpoints.go_back(self._job.spec.name)
        self._notes += [f"passed over: {problem}" for problem in damaged]
        return step

    def _log_events(self) -> None:
        for event in self._server.events[self._logged :]:
            first = self._logged == 0
            self._record.log_event(replace(event, lost=self._lost) if first else event, "; ".join(self._notes))
            self._logged, self._notes = self._logged + 1, []
            if event.cause in ("start", "resume", "join", "restart"):
                self._members |= set(event.members)
                self._stillborn = []
            self._judge(event)

    def _count_stillborn(self, dead: tuple[str, ...]) -> None:
        """Stop a run whose workers die one after another before they have joined: no event tells of those."""
        self._stillborn += [name for name in dead if name not in self._members]
        if len(self._stillborn) >= self._job.spec.parallel.tolerate.poison:
            self._server.fail(
                "RunError",
                f"{len(self._stillborn)} workers died one after another before they had joined "
                f"(parallel.tolerate.poison): look at the memory that data and model take, and at what they do when "
                f"they are loaded",
            )

    def _judge(self, event: Event) -> None:
        """Stop a run that loses workers faster than it may, or whose batch kills them."""
        if not event.members:
            return
        if event.cause in ("death", "lost"):
            verdict = self._budget.died(event.members, self._died_at(event), event.time)
        elif event.cause == "drain":
            verdict = [self._budget.left(member, event.time) for member in event.members][-1]
        else:
            return
        if isinstance(verdict, Spent):
            self._server.fail("RunError", _spent(verdict))
        elif isinstance(verdict, Poisoned):
            self._server.fail("RunError", f"{_poisoned(verdict)}{self._suspects(verdict.step)}")

    def _died_at(self, event: Event) -> int:
        """The step that they had reached; where the group goes back to a checkpoint that is not the view's."""
        others = (other for other in self._server.events if other.epoch == event.epoch)
        return event.step + max(other.lost for other in others)

    def _suspects(self, step: int) -> str:
        items = self._items(step)
        return f": {', '.join(items[:16])}{' ...' if len(items) > 16 else ''}" if items else ""


def _spent(verdict: Spent) -> str:
    kind, key = ("lost", "failures") if verdict.kind == "death" else ("left with notice", "preemptions")
    return (
        f"{verdict.count} workers {kind} within an hour, and parallel.tolerate.{key}_per_hour is {verdict.limit}. The "
        f"checkpoints are kept: mend the machines, or raise the limit, and the same command goes on"
    )


def _poisoned(verdict: Poisoned) -> str:
    return (
        f"step {verdict.step} killed {len(verdict.members)} workers one after another (parallel.tolerate.poison): its "
        f"batch is to blame, or its memory. The checkpoints are kept. Items of the batch"
    )


def _tell(authority: Authority, leave: dict[str, str], dead: tuple[str, ...], now: float) -> None:
    """What the fleet has seen of its workers."""
    for name, cause in leave.items():
        authority.drain((name,), now, cause)
    for name in dead:
        authority.dead(name, now)


def _named_error(failure: dict[str, str]) -> RaydmlError:
    """The error that a worker told of, by its name."""
    kind = getattr(raydml.errors, failure["kind"], RunError)
    return kind(failure["message"])
