"""Who trains together: workers arrive with the step they hold, a view of the group comes out.

Pure state: no clock, no torch, no Ray. A transport carries calls to one Roster that all workers share.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class View:
    """One agreed group: its members in order, the step to go on from, and who holds that step's state."""

    epoch: int
    members: tuple[str, ...]
    step: int
    source: str

    @property
    def size(self) -> int:
        """Number of members, W."""
        return len(self.members)

    def rank(self, worker: str) -> int:
        """Place of a worker among the members."""
        return self.members.index(worker)


@dataclass
class Roster:
    """Closes a view when all `expected` workers of one generation have arrived."""

    expected: int
    epoch: int = 0
    view: View | None = None
    arrived: dict[str, int] = field(default_factory=dict)

    def arrive(self, worker: str, step: int) -> View | None:
        """A worker stands ready with the state after `step` steps; the view, once it is complete.

        Arriving twice before the view closes changes nothing, so a transport may repeat a call that it lost.
        """
        if self.view is not None and worker in self.view.members and worker not in self.arrived:
            return self.view
        self.arrived[worker] = step
        return self._close() if len(self.arrived) == self.expected else None

    def _close(self) -> View:
        members = tuple(sorted(self.arrived))
        step = max(self.arrived.values())
        source = min(worker for worker, held in self.arrived.items() if held == step)
        self.epoch += 1
        self.view = View(self.epoch, members, step, source)
        self.arrived = {}
        return self.view
