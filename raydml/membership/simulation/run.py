"""One simulated run: its world, its workers, its authorities, and the rules by which they are replaced."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from raydml.membership.authority import Authority
from raydml.membership.ledger import MemoryLedger
from raydml.membership.member import Member
from raydml.membership.policy import Policy
from raydml.membership.simulation.group import Group
from raydml.membership.simulation.oracle import Oracle
from raydml.membership.simulation.server import Server
from raydml.membership.simulation.worker import Worker
from raydml.membership.simulation.world import World


@dataclass(frozen=True)
class Parts:
    """What the run is made of; a broken variant replaces one."""

    authority: type[Authority] = Authority
    member: type[Member] = Member
    worker: type[Worker] = Worker
    ledger: type[MemoryLedger] = MemoryLedger
    state: Literal["replicated", "sharded"] = "replicated"
    balance: Literal["equal", "measured"] = "equal"
    unit: int = 1


class Run(World):
    """A training run of `steps` steps with `size` workers at the start."""

    def __init__(self, seed: int, parts: Parts) -> None:
        random = Random(seed)
        super().__init__(
            random,
            drift=random.choice((0.0, 0.02, 0.1)),
            loss=random.choice((0.0, 0.0, 0.0, 0.01)),
            duplication=random.choice((0.0, 0.0, 0.05)),
        )
        self.parts = parts
        self.steps = random.randint(2, 7)
        self.checkpoint_every = random.randint(1, 3)
        unit = parts.unit
        size = unit * random.randint(1, 4 // unit)
        most = unit * random.randint(size // unit, -(-5 // unit))
        self.policy = Policy(
            size,
            most,
            num_slices=unit * -(-5 // unit),
            beat_timeout=3.5,
            grace=0.5,
            lease=2.2,
            balance=parts.balance,
            hold=0.5,
            unit=unit,
            state=parts.state,
        )
        self.ledger = parts.ledger()
        self.oracle = Oracle()
        self.groups: dict[int, Group] = {}
        self.workers: dict[str, Worker] = {}
        self.server = Server(self, "server-1")
        for _ in range(size):
            self.spawn()

    @property
    def living(self) -> list[Worker]:
        """Workers whose process runs."""
        return [worker for worker in self.workers.values() if worker.alive]

    def spawn(self) -> None:
        """A new worker process arrives, with a name of its own."""
        name = f"w{len(self.workers) + 1}"
        self.workers[name] = self.parts.worker(self, name)

    def kill(self, worker: Worker, silently: bool = False) -> None:
        """The process dies; `silently`: with its machine, so that nobody is told."""
        worker.alive = False
        if worker.group is not None:
            worker.group.leave(worker, silently)
        if not silently:
            if worker.connection is not None:
                self.close(worker.connection)
            if self.random.random() < 0.7:
                self.after(0.3 * self.random.random(), self.server, self.server.proven_dead, worker.name)
        self.after(0.3 + 2.0 * self.random.random(), None, self.spawn)

    def gone(self, worker: Worker) -> None:
        """A member was told that it belongs to the run no more: its process ends; another comes where one is missed."""
        worker.alive = False
        if worker.group is not None:
            worker.group.leave(worker)
        if not worker.asked_to_leave or len(self.living) < self.policy.first:
            self.after(0.2, None, self.spawn)

    def replace_server(self) -> None:
        """A new authority takes the ledger, whether or not the last one lives."""
        self.server = Server(self, f"server-{self.server.authority.token + 1}")
