"""A worker that holds parts of the state: all write a checkpoint together, and every group begins with the newest."""

from __future__ import annotations

from raydml.membership.simulation.group import Collective, Kind
from raydml.membership.simulation.run import Parts
from raydml.membership.simulation.worker import Worker


class ShardedWorker(Worker):
    """Goes for a change only after a checkpoint of that very step."""

    leaving = False  # a change was asked for in the last vote

    def completed(self, turn: int, kind: Kind, collective: Collective) -> None:
        """As every worker; and all parts are written, or all know that the checkpoint is whole."""
        if kind in ("reduce", "vote"):
            super().completed(turn, kind, collective)
        elif turn == self.turn:
            self.turn += 1
            self.busy = False
            if kind == "parts":
                self.written()
            else:
                self.saved()

    def reduced(self) -> None:
        """Go on to the vote; one that holds the last step, from a checkpoint, saves it once more."""
        if self.member.step == self.world.steps:
            self.take_part("parts")
        else:
            self.prepare()

    def voted(self, collective: Collective) -> None:
        """All are prepared: commit, and save where that is due or a change comes."""
        self.member.commit(self._kept)
        self.world.moment("committed", self)
        self.leaving = collective.change
        step = self.member.step or 0
        if self.leaving or step == self.world.steps or step % self.world.checkpoint_every == 0:
            self.take_part("parts")
        else:
            self.ready()

    def written(self) -> None:
        """Every owner has written its parts: the first one lets the checkpoint appear, the others wait for its word."""
        assert self.group is not None
        if self.group.view.members[0] == self.name:
            self.world.after(0.1 + self.world.random.random(), self, self.appear, self.turn)
            self.world.moment("checkpoint", self)
        else:
            self.take_part("saved")

    def appear(self, turn: int) -> None:
        """Rename the draft, if the lease allows."""
        if turn != self.turn:
            return
        if not self.member.may_commit(self.clock()):
            self.abort()
            return
        assert self.member.step is not None
        self.world.oracle.publish(self.member.step, self.member.digest)
        self.finished |= self.member.step == self.world.steps
        self.take_part("saved")

    def saved(self) -> None:
        """The checkpoint is whole: come for the next view, or train on; after the last step there is nothing to do."""
        if self.leaving:
            self.abort()
        elif self.member.step != self.world.steps:
            self.ready()


SHARDED = Parts(worker=ShardedWorker, state="sharded", balance="measured")
CELLS = Parts(worker=ShardedWorker, state="sharded", unit=2)
"""Two members hold one copy of the model together, as in a mesh."""
