"""The protocol with one mistake each: what the simulator has to find."""

from __future__ import annotations

from dataclasses import replace

from raydml.membership import Authority, Member, MemoryLedger, Pulse, Record, Report, View
from raydml.membership.member import Action
from raydml.membership.simulation.group import Collective, Kind
from raydml.membership.simulation.run import Parts
from raydml.membership.simulation.sharded import CELLS, SHARDED, ShardedWorker
from raydml.membership.simulation.worker import Worker


class EvictsTheSlow(Authority):
    """A grace timer starts when the first member reports, and who is not there in time is taken for dead."""

    def tick(self, now: float) -> View | None:
        group = [self._seats[name] for name in self._joined]
        if any(seat.reported is not None and now - seat.reported > self.policy.grace for seat in group):
            for seat in group:
                seat.died = now if seat.report is None and seat.died is None else seat.died
        return super().tick(now)


class CommitsWithoutVote(Worker):
    """A member steps as soon as its own reduction is complete."""

    def take_part(self, kind: Kind) -> None:
        if kind == "vote":
            self.voted(Collective())
        else:
            super().take_part(kind)


class NobodyRollsForward(Member):
    """Kept gradients are dropped, though somebody has stepped with them."""

    def adopt(self, view: View) -> Action:
        action = super().adopt(view)
        self.prepared = False
        return "keep" if action == "roll_forward" else action


class TakesTheFencedBack(Authority):
    """A member that was left behind comes back with its state, and a higher step wins."""

    def _is_gone(self, name: str, epoch: int, now: float) -> bool:
        return False

    def tick(self, now: float) -> View | None:
        for name, seat in self._seats.items():
            if seat.report is not None and seat.report.step is not None:
                self._joined.setdefault(name, seat.report.epoch)
        return super().tick(now)


class CommitsWithoutLease(Member):
    """A member that hears nothing from its authority goes on."""

    def may_commit(self, now: float) -> bool:
        return True


class ReusesTheEpoch(Authority):
    """A restarted authority hands out the epoch of the view that its forerunner wrote down."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.epoch = max(0, self.epoch - 1)


class SwapsInPart(Worker):
    """A received state overwrites the old one as it comes."""

    def transfer_begins(self, source: Worker) -> None:
        assert source.member.step is not None
        self.member.hold(source.member.step, f"{source.member.digest[:-2]}half.")


class WritesAfterwards(MemoryLedger):
    """The ledger holds a view only some time after it was handed out."""

    late: Record | None = None

    def write(self, record: Record) -> None:
        super().write(self.late or self.record)
        self.late = record


class LetsTwoRule(MemoryLedger):
    """Nothing tells an authority that another one has taken over."""

    def holds(self, token: int) -> bool:
        return True


class ChecksTheLedgerOnlyToWrite(MemoryLedger):
    """An authority that was replaced still grants leases."""

    def write(self, record: Record) -> None:
        if super().holds(record.token):
            self.record = record
        else:
            super().write(record)

    def holds(self, token: int) -> bool:
        return True


class CheckpointsTooEarly(Worker):
    """A step is made durable when it is committed here, not when all have committed it."""

    def voted(self, collective: Collective) -> None:
        super().voted(collective)
        if self.member.step is not None:
            self.world.after(0.05, self, self.publish, self.member.step, self.member.digest)


class GoesBackAtOnce(Authority):
    """Nobody waits for the leases of those who were left behind with the last state."""

    def _go_back(self, reports: dict[str, Report], now: float) -> View | None:
        for seat in self._seats.values():
            seat.heard = min(seat.heard, now - 2 * self.policy.beat_timeout) if seat.closed else seat.heard
        self._former.clear()
        return super()._go_back(reports, now)


class KeepsDiscardedGradients(Member):
    """The gradients of a discarded step are kept for the next time."""

    def adopt(self, view: View) -> Action:
        prepared = self.prepared
        action = super().adopt(view)
        self.prepared = prepared
        return action


class CountsLeasesFromTheAnswer(Worker):
    """A lease begins when the answer comes, however late that is."""

    def granted(self, pulse: Pulse, sent: float) -> None:
        super().granted(pulse, self.clock())


class ForgetsOldMembers(Authority):
    """A restarted authority does not wait for the members that it reads in the ledger."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self._joined, self._seats = {}, {}


# Mistakes that the first version made


class WaitsForMoreThanItsSize(Authority):
    """Resized below its first number before a group formed, it waited for workers that it would not take."""

    def _choose(self, present: list[str], able: list[str]) -> list[str]:
        chosen = super()._choose(present, able)
        return chosen if self.view is not None or able or len(chosen) >= self.policy.first else []

    def _fill(self, chosen: list[str], present: list[str], least: int) -> list[str]:
        return chosen if self.view is None else super()._fill(chosen, present, least)


class FinishesForAnother(Authority):
    """An authority that was replaced told the members that the run is over; its successor waited for them."""

    def finish(self, now: float) -> None:
        self.over = True


class EvictsAfterItsSleep(Authority):
    """An authority that was suspended took everybody for lost when it went on, and formed a group without them."""

    def _wake(self, now: float) -> None:
        pass


class StrandsTheDrained(Authority):
    """Members that were to leave and held no state waited for others for ever, and nobody replaced them."""

    def _fill(self, chosen: list[str], present: list[str], least: int) -> list[str]:
        return chosen


class ForgetsTheSilent(Authority):
    """One that waited to join, and was silent for too long on an open line, was forgotten, and never reported again."""

    def tick(self, now: float) -> View | None:
        silent = [name for name, seat in self._seats.items() if name not in self._joined and seat.closed is None]
        for name in [name for name in silent if self._seats[name].lost(now, self.policy)]:
            del self._seats[name]
        return super().tick(now)


# Mistakes with a state of which each member holds parts.


class KeepsItsParts(Member):
    """A member that holds the step of the view, or a later one, does not load that step's checkpoint."""

    def adopt(self, view: View) -> Action:
        before = (self.step, self.digest)
        action = super().adopt(view)
        if before[0] is not None and before[0] >= view.step:
            self.step, self.digest = before
            return "keep"
        return action


class PublishesWithoutLease(ShardedWorker):
    """A writer that was given up still lets its checkpoint appear."""

    def appear(self, turn: int) -> None:
        self.member.granted(self.clock() + 10.0)
        super().appear(turn)


class SavesAlone(ShardedWorker):
    """The first member lets a checkpoint appear when its own parts are written."""

    def take_part(self, kind: Kind) -> None:
        if kind == "parts":
            self.written()
        else:
            super().take_part(kind)


class ChangesAtOnce(ShardedWorker):
    """A change does not wait for a checkpoint of its step."""

    def voted(self, collective: Collective) -> None:
        super().voted(collective)
        if collective.change and self.group is not None:
            self.abort()


class CutsACopy(Authority):
    """Resized before a group formed, it waited for as many as were asked for, though two hold one copy together."""

    def resize(self, target: int, now: float) -> None:
        self.size = max(self.policy.unit, min(target, self.policy.num_slices))


class LeavesHalfACopyWaiting(Authority):
    """One that was to leave and one that waited, who could have gone on together, both waited for a third."""

    def _fill(self, chosen: list[str], present: list[str], least: int) -> list[str]:
        spare = [name for name in present if name not in chosen]
        return chosen + spare[: max(0, least - len(chosen))]


BROKEN: dict[str, Parts] = {
    "evicts the slow": Parts(authority=EvictsTheSlow),
    "commits without vote": Parts(worker=CommitsWithoutVote),
    "nobody rolls forward": Parts(member=NobodyRollsForward),
    "takes the fenced back": Parts(authority=TakesTheFencedBack),
    "commits without lease": Parts(member=CommitsWithoutLease),
    "reuses the epoch": Parts(authority=ReusesTheEpoch),
    "swaps in part": Parts(worker=SwapsInPart),
    "writes afterwards": Parts(ledger=WritesAfterwards),
    "lets two rule": Parts(ledger=LetsTwoRule),
    "checks the ledger only to write": Parts(ledger=ChecksTheLedgerOnlyToWrite),
    "checkpoints too early": Parts(worker=CheckpointsTooEarly),
    "goes back at once": Parts(authority=GoesBackAtOnce),
    "keeps discarded gradients": Parts(member=KeepsDiscardedGradients),
    "counts leases from the answer": Parts(worker=CountsLeasesFromTheAnswer),
    "forgets old members": Parts(authority=ForgetsOldMembers),
    "waits for more than its size": Parts(authority=WaitsForMoreThanItsSize),
    "finishes for another": Parts(authority=FinishesForAnother),
    "evicts after its sleep": Parts(authority=EvictsAfterItsSleep),
    "strands the drained": Parts(authority=StrandsTheDrained),
    "forgets the silent": Parts(authority=ForgetsTheSilent),
    "keeps its parts": replace(SHARDED, member=KeepsItsParts),
    "publishes without lease": replace(SHARDED, worker=PublishesWithoutLease),
    "lets checkpoints appear behind it": replace(SHARDED, authority=GoesBackAtOnce),
    "saves alone": replace(SHARDED, worker=SavesAlone),
    "cuts a copy": replace(CELLS, authority=CutsACopy),
    "leaves half a copy waiting": replace(CELLS, authority=LeavesHalfACopyWaiting),
}
