"""Simulated time, processes and connections: one queue of events, one seeded random generator, nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Any

Action = Callable[..., None]


class Process:
    """Something that runs on a machine of its own: a clock that drifts, a life that may end or be suspended."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.alive = True
        self.asleep_until = 0.0
        self._offset = 1000.0 * world.random.random()
        self.rate = 1.0 + world.drift * (2.0 * world.random.random() - 1.0)

    def clock(self) -> float:
        """Monotonic seconds of this machine."""
        return self._offset + self.rate * self.world.now


class Connection:
    """A channel between a worker and a server; what is on its way when it closes is lost."""

    __slots__ = ("open", "opened", "server", "worker")

    def __init__(self, worker: Any, server: Any, now: float) -> None:
        self.worker, self.server, self.open, self.opened = worker, server, True, now


class World:
    """The queue of events and the network.

    drift        clocks run faster or slower by at most this share
    loss         probability that a message breaks its connection
    duplication  probability that a message arrives twice
    """

    def __init__(self, random: Random, drift: float, loss: float, duplication: float) -> None:
        self.random = random
        self.drift, self.loss, self.duplication = drift, loss, duplication
        self.now = 0.0
        self.events = 0
        self.over = False
        self.occurred: Counter[str] = Counter()
        self.armed: list[tuple[str, Callable[[Process], bool]]] = []
        self.cuts: dict[tuple[str, str], float] = {}  # (from, to) -> when it heals
        self._queue: list[tuple[float, int, Process | None, Action, tuple[Any, ...]]] = []
        self._pushed = 0

    def after(self, delay: float, owner: Process | None, action: Action, *arguments: Any) -> None:
        """Let `owner` act in `delay` seconds: later if it is suspended then, never if it is dead."""
        self._pushed += 1
        heappush(self._queue, (self.now + delay, self._pushed, owner, action, arguments))

    def run(self, until: float) -> None:
        """Take events in the order of time until all is `over`, or until the time is up."""
        queue = self._queue
        while queue and not self.over:
            time, _, owner, action, arguments = heappop(queue)
            if time > until:
                return
            if owner is not None:
                if not owner.alive:
                    continue
                if owner.asleep_until > time:
                    self._pushed += 1
                    heappush(queue, (owner.asleep_until, self._pushed, owner, action, arguments))
                    continue
            self.now = time
            self.events += 1
            action(*arguments)

    def moment(self, name: str, process: Process) -> None:
        """Something of interest happens at `process`: a fault may wait for it."""
        for armed in self.armed:
            if armed[0] == name and armed[1](process):
                self.armed.remove(armed)
                self.occurred[f"kill at {name}"] += 1
                return

    def delay(self, source: str, target: str) -> float:
        """Seconds that a message takes: mostly some 30 ms, seldom up to a second, and as long as a cut lasts."""
        draw = self.random.random()
        delay = 0.01 + 0.05 * draw if draw < 0.97 else 30.0 * (draw - 0.97)
        if self.cuts:
            delay += max(0.0, self.cuts.get((source, target), 0.0) - self.now)
        return delay

    def send(self, connection: Connection, target: Process, action: Action, message: Any) -> None:
        """A message over a connection: late, before an earlier one, twice, or never, and then the connection closes."""
        if not connection.open:
            return
        worker, server = connection.worker, connection.server
        source = worker if target is server else server
        if self.loss and self.random.random() < self.loss:
            worker.troubled = True
            self.close(connection)
            return
        self.after(self.delay(source.name, target.name), target, action, connection, message)
        if self.duplication and self.random.random() < self.duplication:
            self.after(self.delay(source.name, target.name), target, action, connection, message)

    def close(self, connection: Connection) -> None:
        """The connection is no more; each end learns of it later."""
        if connection.open:
            connection.open = False
            worker, server = connection.worker, connection.server
            self.after(self.delay(worker.name, server.name), server, server.closed, connection)
            self.after(self.delay(server.name, worker.name), worker, worker.closed, connection)
