"""The collectives of one epoch: complete on some members and failed on others when somebody goes in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from raydml.membership.messages import View

if TYPE_CHECKING:
    from raydml.membership.simulation.worker import Worker

Kind = Literal["reduce", "vote", "parts", "saved"]


class Collective:
    """One reduction, vote or round of a checkpoint: who took part so far, and whether one of them wants a change."""

    __slots__ = ("change", "digests", "joined")

    def __init__(self) -> None:
        self.joined: list[tuple[Worker, int]] = []
        self.digests: set[str] = set()
        self.change = False


class Group:
    """The members of one view as they meet; a collective completes when the last of all members takes part."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.workers: dict[str, Worker] = {}
        self.left: set[str] = set()
        self._collectives: dict[tuple[int | None, Kind], Collective] = {}
        self._receivers: list[tuple[Worker, int]] = []

    def enter(self, worker: Worker) -> None:
        """A member has adopted the view; state begins to flow when its source has."""
        self.workers[worker.name] = worker
        if worker.name == self.view.source:
            for receiver, turn in self._receivers:
                self._transfer(receiver, turn)

    def receive(self, worker: Worker) -> None:
        """A member needs the state of the view's step."""
        self._receivers.append((worker, worker.turn))
        if self.view.source in self.workers:
            self._transfer(worker, worker.turn)

    def _transfer(self, receiver: Worker, turn: int) -> None:
        if turn != receiver.turn:
            return
        world = receiver.world
        source = self.workers[self.view.source or ""]
        seconds = 0.1 + 0.8 * world.random.random() + world.delay(source.name, receiver.name)
        receiver.transfer_begins(source)
        state = (source.member.step, source.member.digest)
        world.after(seconds / 2, source, world.moment, "transfer", source)
        world.after(seconds, receiver, receiver.received, turn, source, *state)

    def take_part(self, worker: Worker, kind: Kind) -> None:
        """A member starts a collective; it learns later whether that completed or failed, or nothing."""
        world = worker.world
        key = (worker.member.step, kind)
        collective = self._collectives.get(key)
        if collective is None:
            collective = self._collectives[key] = Collective()
        collective.joined.append((worker, worker.turn))
        collective.digests.add(worker.member.digest)
        collective.change |= worker.change
        if len(collective.joined) == self.view.size:
            world.oracle.complete(self.view.epoch, kind, collective)
            for one, turn in collective.joined:
                world.after(self._slowest(one), one, one.completed, turn, kind, collective)
        elif self.left:
            self._fails_at(worker)

    def leave(self, worker: Worker, silently: bool = False) -> None:
        """A member aborted its communicator, or is dead; the others may notice in what they are doing."""
        if worker.name not in self.left:
            self.left.add(worker.name)
            for other in self.workers.values():
                if other.name not in self.left and other.busy and not silently:
                    self._fails_at(other)

    def _fails_at(self, worker: Worker) -> None:
        """Mostly an error soon; sometimes nothing at all."""
        world = worker.world
        draw = world.random.random()
        if draw < 0.85:
            world.after(0.3 * draw, worker, worker.failed, worker.turn)

    def _slowest(self, worker: Worker) -> float:
        """Seconds until all parts have reached a worker."""
        world = worker.world
        if not world.cuts:
            return world.delay("", "")
        return max(world.delay(other, worker.name) for other in self.view.members)
