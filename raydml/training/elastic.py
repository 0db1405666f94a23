"""One worker of an elastic run: it joins, trains, re-forms the group when workers come, go or die, and goes on.

The state machine is `membership.Member`; here its actions are taken on a real worker. It knows no Ray.
"""

from __future__ import annotations

import hashlib
import struct
import traceback
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from raydml.data import open_dataset
from raydml.errors import RaydmlError, RunError, StaleView
from raydml.membership import Address, Gone, Link, Member, Over, View
from raydml.parallel import Group, PeerLost
from raydml.training import handover
from raydml.training.interfaces import meet_by
from raydml.training.loop import StepReport
from raydml.training.process_group import TIMEOUT, ProcessGroup
from raydml.training.worker import Job, Outcome, Worker

# A group that breaks so often at one step without losing anybody has another fault than a lost worker.
BREAKS = 5
CONNECT = timedelta(seconds=10)


@dataclass(frozen=True)
class Meeting:
    """Where members of a run meet: the authority, and the port of the store on the same host."""

    authority: Address
    store_port: int


def run_member(job: Job, meeting: Meeting, name: str, node: str, device: torch.device) -> str:
    """Be one member of the run until it has ended; how it ended for this member.

    succeeded, interrupted; over: it ended without this member; left: asked to, after a step; gone: counted as lost;
    failed: an error, which the authority has been told. Raises nothing that a restart could not mend.
    """
    job = replace(job, resume=None)  # the view says where to go on from; that checkpoint may have been dropped by now
    group = Group(0, 1, job.spec.batch.virtual_workers, job.spec.parallel.mesh)

    def connect() -> TCPStore:
        store = TCPStore(meeting.authority.host, meeting.store_port, is_master=False, timeout=CONNECT)
        store.set_timeout(TIMEOUT)
        return store

    meet_by(meeting.authority.host)
    processes = ProcessGroup(connect, "nccl" if device.type == "cuda" else "gloo")
    with Link(meeting.authority, name, processes.abort) as link:
        session: Session | None = None
        try:
            session = Session(job, group, device, processes, link, node)
            outcome = session.run()
            link.say("done", outcome=outcome)
            return outcome
        except Over:
            return "over"
        except Gone:
            return "left" if session is not None and session.at_boundary else "gone"
        except RaydmlError as error:
            link.say("failed", kind=type(error).__name__, message=error.message)
            return "failed"
        except Exception as error:  # of the model or the data: it would come again on every worker
            link.say("failed", kind="RunError", message=f"{name}: {error}\n{traceback.format_exc()}")
            return "failed"
        finally:
            link.flush()
            processes.leave()


class Session:
    """A worker among the members of its run.

    Where every member holds the whole state, the worker is made before it joins, and goes from group to group. Where
    each holds parts, every group makes its workers anew, with the parts that fall to them.
    """

    def __init__(
        self, job: Job, group: Group, device: torch.device, processes: ProcessGroup, link: Link, node: str
    ) -> None:
        self.group, self.processes, self.link, self.node = group, processes, link, node
        self._sharded = job.spec.state == "sharded"
        self._job, self._device = job, device
        self._dataset = open_dataset(job.spec.data, job.home, custom=job.dataset)
        self._worker = None if self._sharded else self._build()
        self.member = Member(link.member)
        self.at_boundary = False  # whether this member came for the next view after a step that all committed
        self._speed = Speed()

    def _build(self) -> Worker:
        return Worker(self._job, self.group, self._device, self._dataset)

    @property
    def worker(self) -> Worker:
        """The worker of the present group."""
        assert self._worker is not None
        return self._worker

    def run(self) -> Outcome:
        """Train until the run has ended. Raises Gone, Over, or the error that stops the run."""
        last: tuple[tuple[str, ...], int] | None = None  # members and step of a group that broke
        breaks = 0
        while True:
            view = self.link.arrive(self.member.report(self._speed.value, self.node))
            self.at_boundary = False
            try:
                self._enter(view)
                outcome = self.worker.run(self)
            except StaleView:
                continue
            except PeerLost as lost:
                self.processes.abort()
                self.processes.leave()
                here = (view.members, self.member.step or 0)
                breaks, last = (breaks + 1 if here == last else 1), here
                if breaks == BREAKS:
                    raise RunError(f"step {here[1]} failed {BREAKS} times and no worker is lost: {lost}") from lost
                continue
            if outcome != "changed":
                return outcome
            self.at_boundary = True

    def _enter(self, view: View) -> None:
        """Take the place that the view gives, with its state."""
        action = self.member.adopt(view)
        if action == "roll_forward":
            self.committed(self.worker.roll_forward())
        if self._worker is not None:
            self._worker.trainer.prepared = None
        self.processes.form(view, self.member.name, self.group)
        if action == "restore":
            self.member.hold(view.step, self._restore(view.step))
        elif view.source is not None:
            needy = [rank for rank, needs in enumerate(self.group.objects(action == "receive")) if needs]
            if action == "receive":
                self.member.hold(view.step, handover.take(self.worker, view.rank(view.source)))
            elif needy and self.member.name == view.source:
                handover.give(self.worker, self.member.digest, needy)
        self.link.at(view.step, self._speed.value)

    def _restore(self, step: int) -> str:
        """Go on from the checkpoint of a step, or begin; the SHA-256 of that state."""
        if self._sharded:
            self._worker = None  # its memory goes before the next one is made
            self._worker = self._build()
        return self.worker.restore(step) if step else self.worker.trainer.state.digest()

    def prepared(self) -> bool:
        """Whether this member wants to come for a new view after the step; PeerLost where it may not commit."""
        self.member.prepare()
        if not self.may_commit():
            raise PeerLost("no word from the authority within the lease")
        if self.link.standing in ("broken", "gone", "over"):
            raise PeerLost(f"the authority says {self.link.standing}")
        return self.link.standing == "change"

    def may_commit(self) -> bool:
        """Whether the authority still counts this member as alive, for sure."""
        return self.link.may_commit()

    def committed(self, report: StepReport) -> None:
        """Name the lineage by what every worker knows alike of the step: equal for equal histories."""
        norm = float("nan") if report.gradient_norm is None else report.gradient_norm
        facts = struct.pack("<qdd", report.step, report.loss, norm)
        self.member.commit(hashlib.sha256(self.member.digest.encode() + facts).hexdigest())
        if report.own_seconds:  # 0 where it was rolled forward
            self._speed.saw(report.own_seconds, len(self.group.owned))
        self.link.at(report.step, self._speed.value)


class Speed:
    """Slices per second of this worker: smoothed, and without the first step of the process, which warms up."""

    WEIGHT = 0.1

    def __init__(self) -> None:
        self.value = 0.0
        self._warm = False

    def saw(self, seconds: float, slices: int) -> None:
        """One step's own time."""
        if not self._warm:
            self._warm = True
            return
        now = slices / max(seconds, 1e-9)
        self.value = now if not self.value else (1 - self.WEIGHT) * self.value + self.WEIGHT * now
