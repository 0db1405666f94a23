"""A worker process: a training loop that runs from event to event, a thread that beats, and a Member between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raydml.errors import StaleView
from raydml.membership.messages import Beat, Pulse, View
from raydml.membership.simulation.group import Collective, Group, Kind
from raydml.membership.simulation.oracle import check
from raydml.membership.simulation.world import Connection, Process

if TYPE_CHECKING:
    from raydml.membership.simulation.run import Run

BEAT = 1.2
SILENCE = 3.0
"""Seconds without a pulse after which a worker gives its connection up."""


class Worker(Process):
    """Trains as a member of whatever group it is in, and writes checkpoints when it has rank 0."""

    world: Run

    def __init__(self, world: Run, name: str) -> None:
        super().__init__(world, name)
        self.member = world.parts.member(name)
        self.connection: Connection | None = None
        self.group: Group | None = None  # None: it has reported and waits for a view
        self.turn = 0  # raised whenever what was started no longer matters
        self.busy = False  # within a collective
        self.change = self.finished = self.troubled = self.asked_to_leave = False
        self.blocked: Kind | None = None  # what it would take part in, had it a lease
        self.slowness = 1.0
        self._kept = ""  # the state that the kept gradients lead to
        self._heard = self.clock()
        world.after(0.3 * world.random.random(), self, self.connect)
        world.after(BEAT * world.random.random(), self, self.beat)

    # The thread that beats

    def connect(self) -> None:
        """Open a connection to the present authority; come again for a view if one is awaited."""
        server = self.world.server
        if self.connection is not None:
            return
        if not server.alive:
            self.world.after(0.4, self, self.connect)
            return
        self.connection = Connection(self, server, self.world.now)
        self._heard = self.clock()
        if self.group is None:
            self.send_report()
        else:
            self.send_beat()

    def closed(self, connection: Connection) -> None:
        """The connection broke: open another."""
        if connection is self.connection:
            self.connection = None
            self.world.after(1.2 * self.world.random.random() ** 3, self, self.connect)

    def beat(self) -> None:
        """Every BEAT seconds, whatever the training does."""
        if self.connection is not None and self.clock() - self._heard > SILENCE:
            self.world.close(self.connection)
            self.closed(self.connection)
        self.send_beat()
        self.world.after(BEAT, self, self.beat)

    def send_beat(self) -> None:
        """A sign of life."""
        if self.connection is not None:
            beat = Beat(self.name, self.member.epoch, self.member.step or 0, 1.0 / self.slowness)
            server = self.connection.server
            self.world.send(self.connection, server, server.beaten, (beat, self.clock(), self.finished))

    def send_report(self) -> None:
        """Come for a view."""
        if self.connection is not None:
            server = self.connection.server
            self.world.send(self.connection, server, server.reported, self.member.report(1.0 / self.slowness))

    def pulsed(self, connection: Connection, message: tuple[Pulse, float]) -> None:
        """The answer to a beat that was sent at that time."""
        if connection is not self.connection:
            return
        pulse, sent = message
        self._heard = self.clock()
        if pulse.lease:
            self.granted(pulse, sent)
        if pulse.standing == "gone":
            self.world.gone(self)
            return
        if self.group is not None and pulse.epoch >= self.member.epoch:
            if pulse.standing == "broken":
                self.abort()
            elif pulse.standing == "change":
                self.change = True
        if self.blocked is not None and self.member.may_commit(self.clock()):
            kind, self.blocked = self.blocked, None
            self.take_part(kind)

    def granted(self, pulse: Pulse, sent: float) -> None:
        """A lease counts from the sending of the beat."""
        self.member.granted(sent + pulse.lease)

    # The thread that trains

    def viewed(self, connection: Connection, view: View) -> None:
        """A new group: enter it with the state that its view names."""
        if connection is not self.connection or self.group is not None:
            return
        try:
            action = self.member.adopt(view)
        except StaleView:
            return
        world = self.world
        self.turn += 1
        self.group = world.groups.setdefault(view.epoch, Group(view))
        if action == "roll_forward":
            self.member.commit(self._kept)
        self.group.enter(self)
        if action == "receive":
            check(self.member.step is None, "a survivor had to be given the state", self.member, view)
            self.group.receive(self)
        elif action == "restore":
            world.after(0.1 + world.random.random(), self, self.restored, self.turn, view.step)
        else:
            self.ready()

    def transfer_begins(self, source: Worker) -> None:
        """The state streams into shadow buffers: nothing has changed yet."""

    def received(self, turn: int, source: Worker, step: int, digest: str) -> None:
        """The state came whole, unless its source went half way."""
        if turn == self.turn and source.alive and source.group is self.group:
            self.member.hold(step, digest)
            self.ready()

    def restored(self, turn: int, step: int) -> None:
        """The checkpoint of a step is loaded."""
        if turn == self.turn:
            self.member.hold(step, self.world.oracle.durable[step])
            self.ready()

    def ready(self) -> None:
        """The state of the view is here: train on."""
        assert self.member.step is not None
        self.world.oracle.state(self.member.epoch, self.member.step, self.member.digest)
        self.begin()

    def begin(self) -> None:
        """Compute the next step's gradients; after the last step only its acknowledgement is missing."""
        world = self.world
        self.turn += 1
        last = self.member.step == world.steps
        seconds = 0.0 if last else self.slowness * (0.3 + 0.3 * world.random.random())
        world.after(seconds, self, self.computed, self.turn)

    def computed(self, turn: int) -> None:
        """The worker's slices are done."""
        if turn == self.turn:
            self.take_part("reduce")

    def take_part(self, kind: Kind) -> None:
        """Start a collective, if the lease allows."""
        assert self.group is not None
        if not self.member.may_commit(self.clock()):
            self.blocked = kind
            return
        self.busy = True
        self.group.take_part(self, kind)

    def completed(self, turn: int, kind: Kind, collective: Collective) -> None:
        """A collective is complete here; elsewhere perhaps not."""
        if turn != self.turn:
            return
        self.turn += 1
        self.busy = False
        if kind == "reduce":
            self.reduced()
        else:
            self.voted(collective)

    def reduced(self) -> None:
        """All hold the state, which is therefore acknowledged, and the gradients of the next step."""
        member, world = self.member, self.world
        assert self.group is not None and member.step is not None
        leads = self.group.view.members[0] == self.name
        if leads and (member.step == world.steps or (member.step and member.step % world.checkpoint_every == 0)):
            seconds = 0.1 + world.random.random()
            world.after(seconds, self, self.publish, member.step, member.digest)
            world.moment("checkpoint", self)
        if member.step != world.steps:
            self.prepare()

    def prepare(self) -> None:
        """The gradients of the next step are complete: vote on it."""
        self.member.prepare()
        self._kept = f"{self.member.digest}{self.member.epoch}."
        self.world.moment("prepared", self)
        self.take_part("vote")

    def voted(self, collective: Collective) -> None:
        """All are prepared: commit."""
        self.member.commit(self._kept)
        self.world.moment("committed", self)
        if collective.change:
            self.abort()
        else:
            self.ready()

    def publish(self, step: int, digest: str) -> None:
        """The checkpoint is written: rename it to its name, if the lease allows. The last one ends the run."""
        world = self.world
        if self.member.may_commit(self.clock()):
            world.oracle.publish(step, digest)
            self.finished |= step == world.steps
        elif step == world.steps:
            world.after(0.5, self, self.publish, step, digest)

    def failed(self, turn: int) -> None:
        """A collective ended with an error."""
        if turn == self.turn and self.group is not None:
            self.abort()

    def abort(self) -> None:
        """Leave the group for good and come for a new view."""
        assert self.group is not None
        self.turn += 1
        self.busy = self.change = False
        self.blocked = None
        self.group.leave(self)
        self.group = None
        self.send_report()
        self.world.moment("reported", self)
