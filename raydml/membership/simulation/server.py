"""The process that hosts an authority: connections in, views and pulses out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raydml.membership.messages import Beat, Report
from raydml.membership.simulation.oracle import check
from raydml.membership.simulation.world import Connection, Process

if TYPE_CHECKING:
    from raydml.membership.simulation.run import Run

TURN = 0.8
"""Seconds between turns without a message."""


class Server(Process):
    """Drives one Authority; a newer server may take the run over while this one lives."""

    world: Run

    def __init__(self, world: Run, name: str) -> None:
        super().__init__(world, name)
        self.connections: dict[str, Connection] = {}
        parts, oracle = world.parts, world.oracle
        self.authority = parts.authority("run", world.ledger, world.policy, self.clock(), lambda: oracle.newest)
        world.after(TURN, self, self.timer)

    def reported(self, connection: Connection, report: Report) -> None:
        """A member comes for a view."""
        if not connection.open:
            return
        self.connections[report.member] = connection
        view = self.authority.report(report, self.clock())
        if view is not None:
            worker = connection.worker
            self.world.send(connection, worker, worker.viewed, view)
        self.turn()

    def beaten(self, connection: Connection, message: tuple[Beat, float, bool]) -> None:
        """A sign of life, with the time of its sending and whether the member has finished the run."""
        if not connection.open:
            return
        beat, sent, finished = message
        self.connections[beat.member] = connection
        if finished:
            self.authority.finish(self.clock())
            self.world.over = self.authority.over
            rules = not self.world.over or self.authority.token == self.world.ledger.record.token
            check(rules, "a run was ended without the lease", self.name)
        pulse = self.authority.beat(beat, self.clock())
        worker = connection.worker
        self.world.send(connection, worker, worker.pulsed, (pulse, sent))
        self.turn()

    def closed(self, connection: Connection) -> None:
        """A connection is gone."""
        name = connection.worker.name
        if self.connections.get(name) is connection:
            del self.connections[name]
            self.authority.disconnected(name, self.clock())
            self.turn()

    def proven_dead(self, name: str) -> None:
        """The process table says so."""
        self.authority.dead(name, self.clock())
        self.turn()

    def timer(self) -> None:
        """A turn without a message."""
        self.turn()
        self.world.after(TURN, self, self.timer)

    def turn(self) -> None:
        """Let the authority decide; hand out what it decided."""
        world = self.world
        view = self.authority.tick(self.clock())
        if view is not None:
            world.oracle.closed(view, self)
            world.moment("view", self)
            for name in view.members if self.alive else ():
                connection = self.connections.get(name)
                if connection is not None:
                    world.send(connection, connection.worker, connection.worker.viewed, view)
        check(self.authority.failure is None, "the authority gave up", self.authority.failure)
        if self.authority.deposed:
            self.stop()

    def stop(self) -> None:
        """The process ends, by itself or killed: its connections close."""
        self.alive = False
        for connection in self.connections.values():
            self.world.close(connection)
