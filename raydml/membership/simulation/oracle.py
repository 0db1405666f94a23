"""Sees everything and checks after every event what must never happen.

A digest is here the whole lineage of a state: the epoch that computed each of its steps, one after another. So the
state of step t is a prefix of every later one, and a step computed twice gives two digests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raydml.membership.messages import View

if TYPE_CHECKING:
    from raydml.membership.simulation.group import Collective, Kind
    from raydml.membership.simulation.server import Server
    from raydml.membership.simulation.worker import Worker


class Violation(AssertionError):
    """The protocol broke one of its invariants."""


def check(holds: bool, what: str, *facts: object) -> None:
    """Violation unless it holds."""
    if not holds:
        raise Violation(f"{what}: {', '.join(map(str, facts))}")


class Oracle:
    """What is agreed, acknowledged and durable, as nobody in the run can know it."""

    def __init__(self) -> None:
        self.views: dict[int, View] = {}
        self.epoch = 0
        self.acknowledged = ""  # the lineage of the highest acknowledged state
        self.base = ""  # the newest state of the newest epoch
        self.durable: dict[int, str] = {0: ""}  # step -> lineage
        self.lost_live = 0  # acknowledged steps that only a checkpoint could have saved
        self._states: dict[tuple[int, int], str] = {}

    @property
    def newest(self) -> int:
        """Step of the newest checkpoint."""
        return max(self.durable)

    def closed(self, view: View, server: Server) -> None:
        """An authority is about to hand out a view."""
        record, before = server.world.ledger.record, self.views.get(self.epoch)
        check(view.epoch > self.epoch, "an epoch was used again", view.epoch, self.epoch)
        check(server.authority.token == record.token, "a view without the lease", view, record)
        check(record.epoch == view.epoch, "a view that the ledger does not hold", view, record)
        check(sum(view.deal) == server.authority.policy.num_slices, "slices are missing", view)
        # A new authority knows nothing of a request to resize: those beyond its own size leave.
        surplus = len(view.members) >= server.authority.size
        whole = server.authority.policy.state == "replicated"
        check(whole or view.source is None, "a member is asked for a state of which it holds parts", view)
        unit = server.authority.policy.unit
        check(len(view.members) % unit == 0, "members hold no whole copies of the model", view, unit)
        left = set(before.members if before else ()) - set(view.members)
        well = [name for name in left if healthy(server.world.workers[name], server)]
        check(surplus or len(well) < unit, "a healthy member was evicted", well, view)
        if view.source is None:
            check(view.step in self.durable, "a view goes on from a step without a checkpoint", view, self.durable)
            kept = self.durable[view.step]
            self.lost_live += steps(self.acknowledged) - view.step
            self.acknowledged = kept
        self.views[view.epoch], self.epoch, self.base = view, view.epoch, ""

    def state(self, epoch: int, step: int, digest: str) -> None:
        """A member holds the state of a step and trains on from it in this epoch."""
        check(steps(digest) == step, "a step was used twice or not at all", step, digest)
        known = self._states.setdefault((epoch, step), digest)
        check(step >= self.views[epoch].step, "a member trains from before its view", epoch, step, self.views[epoch])
        check(known == digest, "two states of one step in one epoch", epoch, step, known, digest)
        if epoch == self.epoch:
            self.base = digest
            check(digest.startswith(self.acknowledged), "an acknowledged step is lost", digest, self.acknowledged)

    def complete(self, epoch: int, kind: Kind, collective: Collective) -> None:
        """All members took part in a collective; one with the state of step t acknowledges all steps up to t."""
        if kind not in ("reduce", "parts"):
            return
        check(len(collective.digests) == 1, "members reduce with different states", epoch, collective.digests)
        (digest,) = collective.digests
        if epoch == self.epoch:
            check(digest.startswith(self.acknowledged), "two decisions on one step", digest, self.acknowledged)
            self.acknowledged = digest
            return
        # One that was left behind may hear late that all had committed: true, if the newest epoch goes on from there.
        if digest.startswith(self.acknowledged) and (not self.base or self.base.startswith(digest)):
            self.acknowledged = digest
        known = max(self.acknowledged, self.base, key=steps)
        check(known.startswith(digest), "an old epoch acknowledges a step", epoch, self.epoch, digest, known)

    def publish(self, step: int, digest: str) -> None:
        """A checkpoint becomes durable."""
        check(self.acknowledged.startswith(digest), "durable and not acknowledged", digest, self.acknowledged)
        check(self.durable.setdefault(step, digest) == digest, "two checkpoints of one step", step, digest)


def healthy(worker: Worker, server: Server) -> bool:
    """Whether a worker was well all the time, was to stay, and has been connected to this authority for a while."""
    connection = worker.connection
    if connection is None or connection.server is not server or worker.world.now - connection.opened < 1.5:
        return False
    return worker.alive and not worker.troubled and not worker.asked_to_leave


def steps(digest: str) -> int:
    """Number of steps in a lineage such as '1.1.3.'."""
    return digest.count(".")
