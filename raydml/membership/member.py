"""One member's part of the protocol: what it holds, what it may do, and what a new view asks of it. Pure state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raydml.errors import RunError, StaleView
from raydml.membership.messages import Report, View

Action = Literal["keep", "roll_forward", "receive", "restore"]
"""What a member has to do before it trains in a new view:

keep          nothing: it holds the state of the view's step; kept gradients of a discarded step are dropped
roll_forward  commit the step for which it kept its gradients
receive       get the whole state from the view's source, check its digest, then `hold` it
restore       load the checkpoint of the view's step, then `hold` it; what the member held before does not count
"""


@dataclass
class Member:
    """What one worker process holds of a run.

    `step` is the number of steps in its state (None: it holds none) and `digest` names the lineage of that state.
    `prepared`: it also keeps the reduced gradients of the next step, on which no vote has passed yet. Until
    `lease_end`, on its own monotonic clock, it may act for its epoch.
    """

    name: str
    run: str | None = None
    epoch: int = 0
    step: int | None = None
    prepared: bool = False
    digest: str = ""
    lease_end: float = float("-inf")

    def prepare(self) -> None:
        """The reductions of the next step are complete and its gradients kept; nothing has changed yet."""
        assert self.step is not None and not self.prepared
        self.prepared = True

    def commit(self, digest: str) -> None:
        """The vote has passed, or the step is rolled forward: its kept gradients went into the state."""
        assert self.step is not None and self.prepared
        self.step, self.digest, self.prepared = self.step + 1, digest, False

    def hold(self, step: int, digest: str) -> None:
        """A whole state was swapped in, received or loaded. Until then the old one counts, never a mixture."""
        self.step, self.digest, self.prepared = step, digest, False

    def report(self, speed: float = 0.0, node: str = "") -> Report:
        """What to come with for a new view; from here on the member takes no part in its present epoch."""
        return Report(self.name, self.epoch, self.step, self.prepared, self.digest, speed, node)

    def adopt(self, view: View) -> Action:
        """Enter the view's epoch; says what is to be done before training in it.

        StaleView: the view is not newer than the member's epoch, leaves it out, or goes on behind the member's state.
        RunError: it is of another run.
        """
        if self.run not in (None, view.run):
            raise RunError(f"{self.name} belongs to run {self.run}, and the view is of run {view.run}")
        behind = view.source is not None and (self.step or 0) > view.step
        if view.epoch <= self.epoch or self.name not in view.members or behind:
            raise StaleView(
                f"{self.name} is at epoch {self.epoch} and step {self.step}; the view is of epoch {view.epoch} and "
                f"step {view.step}, for {', '.join(view.members)}: come for a new view"
            )
        self.run, self.epoch = view.run, view.epoch
        if view.source is None:
            self.prepared = False
            return "restore"
        if self.step == view.step:
            self.prepared = False
            return "keep"
        return "roll_forward" if self.prepared and self.step == view.step - 1 else "receive"

    def granted(self, until: float) -> None:
        """A lease until this moment of the member's clock, counted from when it sent the beat that was answered."""
        self.lease_end = max(self.lease_end, until)

    def may_commit(self, now: float) -> bool:
        """Whether the lease runs: asked before every reduction, every vote and the publishing of a checkpoint.

        A member without it stops where it is and waits: for a later pulse, or for a standing other than `go`.
        """
        return now < self.lease_end
