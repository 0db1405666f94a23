"""The one that decides who trains together: reports and signs of life in, views and standings out.

Pure state: no threads and no clock. `now` is an argument, in monotonic seconds of the authority's machine. The
transport calls `tick` after every message and a few times a second, and hands a view to all its members. A member talks
to one authority over one connection at a time, and what arrives on a closed connection is dropped.

Why two groups never go on: every collective of an epoch needs all its members, and a member that reports has left its
epoch for good; so one survivor's report ends the old epoch, however alive the missing ones are. Where nobody is left to
report a whole state, the run goes back to a checkpoint, and that waits until every lease of a missing one has run out:
no checkpoint can appear behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from raydml.errors import CheckpointError, RunExists
from raydml.membership.ledger import Ledger
from raydml.membership.messages import Beat, Event, Pulse, Report, Standing, View
from raydml.membership.pace import Pace, Redeal
from raydml.membership.policy import Policy
from raydml.membership.seats import Seat, causes
from raydml.membership.shares import deal


class Authority:
    """Decides on the views of one run, one after another; `deposed` once a newer authority has taken the ledger.

    durable_step  the step of the newest whole checkpoint, 0 where none was ever made; asked when nobody holds a whole
                  state. A CheckpointError, where all are damaged, ends the run
    wall          seconds to add to `now` for the wall time of events
    """

    def __init__(
        self,
        run: str,
        ledger: Ledger,
        policy: Policy,
        now: float,
        durable_step: Callable[[], int],
        wall: float = 0.0,
    ) -> None:
        self.run, self.policy, self.size = run, policy, policy.most
        self.view: View | None = None
        self.events: list[Event] = []
        self.over = self.deposed = False
        self.failure: dict[str, str] | None = None  # kind and message of the error that ended the run
        self._ledger, self._durable_step, self._wall = ledger, durable_step, wall
        self._record = ledger.take()
        # The view that the record names may never have been handed out: its epoch is not used again.
        self.epoch = self._record.epoch
        self._joined = dict(self._record.joined)  # in rank order
        self._seats = {name: Seat(now) for name in self._joined}
        self._former: dict[str, float] = {}  # left behind without proof of death -> last heard
        self._gone: set[str] = set()
        self._returned: set[str] = set()  # left on request, or told already that they are gone
        self._leaving: dict[str, str] = {}  # who is to leave -> drain or resize
        self._reached = self._record.step
        self._changing = bool(self._joined)
        self._awake = now  # when it last did anything
        self._pace = Pace(policy.hold)
        self._redeal: Redeal | None = None  # for which the present group is to meet anew

    @property
    def token(self) -> int:
        """Which authority of the run this is, counted from 1."""
        return self._record.token

    # What members say

    def report(self, report: Report, now: float) -> View | None:
        """A member comes for a view; the present one if it belongs there already, else None until `tick` closes one."""
        name = report.member
        self._wake(now)
        if self.over or self.deposed or self._is_gone(name, report.epoch, now):
            return None
        if self.view is not None and name in self._joined and report.epoch < self.epoch:
            return self.view
        seat = self._seats.setdefault(name, Seat(now))
        seat.heard, seat.closed = now, None
        if seat.report is None:
            seat.report, seat.reported = report, now
            self._reached = max(self._reached, report.step or 0)
        return None

    def beat(self, beat: Beat, now: float) -> Pulse:
        """A sign of life; the answer grants a lease, unless the member is gone or this authority is deposed."""
        self._wake(now)
        if self.over:
            return Pulse("over", self.epoch, 0.0)
        if not self._rules():
            return Pulse("wait", self.epoch, 0.0)
        if self._is_gone(beat.member, beat.epoch, now):
            return Pulse("gone", self.epoch, 0.0)
        seat = self._seats.get(beat.member)
        if seat is None:
            return Pulse("wait", self.epoch, 0.0)
        seat.heard, seat.closed, seat.speed = now, None, beat.speed
        if beat.member in self._joined and beat.step > self._reached:
            self._reached = beat.step
        return Pulse(self._standing(beat, seat, now), self.epoch, self.policy.lease)

    def standing(self, beat: Beat, now: float) -> Pulse:
        """How the member of that last beat stands now: what to tell it before its next one. It grants no lease."""
        seat = self._seats.get(beat.member)
        if self.over:
            return Pulse("over", self.epoch, 0.0)
        if self.deposed or seat is None:
            return Pulse("wait", self.epoch, 0.0)
        return Pulse(self._standing(beat, seat, now), self.epoch, 0.0)

    def disconnected(self, member: str, now: float) -> None:
        """Its connection closed: without a new sign of life within `grace`, the member counts as lost."""
        if (seat := self._seats.get(member)) is not None and seat.closed is None:
            seat.closed = now

    def dead(self, member: str, now: float) -> None:
        """Its process is proven to be dead, by the process table or by Ray: nobody waits for it."""
        self._former.pop(member, None)
        if (seat := self._seats.get(member)) is not None and seat.died is None:
            seat.died = now

    # What the run asks for

    def resize(self, target: int, now: float) -> None:
        """From the next step boundary on, at most `target` members; the youngest leave, waiting ones join."""
        unit = self.policy.unit
        self.size = max(unit, min(target, self.policy.num_slices) // unit * unit)

    def settle_for(self, first: int) -> None:
        """Wait for fewer workers than planned before the first view."""
        self.policy = replace(self.policy, first=min(first, self.policy.first))

    def drain(self, members: tuple[str, ...], now: float, cause: str = "drain") -> None:
        """These leave at the next step boundary, the last one that holds the state when another has been given it."""
        self._leaving |= dict.fromkeys(members, cause)
        for name in [name for name in members if name not in self._joined]:
            self._seats.pop(name, None)
            self._gone.add(name)
            self._returned.add(name)

    def leave(self, member: str, now: float) -> None:
        """A member asks to leave: as `drain`."""
        self.drain((member,), now)

    def finish(self, now: float) -> None:
        """The run has reached its end: everybody is told that it is over, unless another authority took over."""
        self.over = self._rules()

    def fail(self, now: float, reason: str = "failed", kind: str = "RunError") -> None:
        """The run cannot go on: everybody is told that it is over."""
        self.over, self.failure = True, self.failure or {"kind": kind, "message": reason}

    # What is decided

    def tick(self, now: float) -> View | None:
        """Close a view when nobody has to be waited for. A ledger that another one took makes this one deposed."""
        self._wake(now)
        if self.over or self.deposed:
            return None
        if len(self._seats) > len(self._joined):
            for name in [n for n in self._seats if n not in self._joined and self._seats[n].lost(now, self.policy)]:
                if self._seats.pop(name).closed is None:  # silent on an open line: it would not report again
                    self._gone.add(name)
                    self._returned.add(name)
        self._look_at_speeds(now)
        self._changing = bool(self._joined) and (
            self.view is None or self._redeal is not None or self._members_change()
        )
        reports: dict[str, Report] = {}
        for name in self._joined:
            seat = self._seats[name]
            if seat.lost(now, self.policy):
                continue
            if seat.report is None or seat.closed is not None:
                return None
            reports[name] = seat.report
        replicated = self.policy.state == "replicated"
        if replicated and any(report.step is not None for report in reports.values()):
            return self._go_on(reports, now)
        return self._go_back(reports, now)

    def _look_at_speeds(self, now: float) -> None:
        """Name those who hold the others up; where slices are dealt by speed, see whether they should be anew."""
        if self.view is None or self.view.size == 1:
            return
        speeds = {name: self._seats[name].speed for name in self.view.members}
        size = self.view.size
        for slow in self._pace.stragglers(speeds, now):
            note = f"{slow.speed:.3g} slices a second, the others {slow.others:.3g}"
            self._tell("straggler", size, now, slow.member, note)
        if self.policy.balance == "measured" and self._redeal is None:
            self._redeal = self._pace.redeal(self.view.deal, list(speeds.values()), now)

    def _tell(self, cause: str, size: int, now: float, member: str, note: str = "") -> None:
        """An event that changes no group."""
        time = now + self._wall
        self.events.append(Event(time, self.epoch, self._reached, cause, size, size, members=(member,), note=note))

    def _go_on(self, reports: dict[str, Report], now: float) -> View | None:
        """The group goes on from the highest step that somebody who came holds."""
        top = max(report.step for report in reports.values() if report.step is not None)
        for step in (top, top - 1):
            digests = {name: report.digest for name, report in reports.items() if report.step == step}
            if len(set(digests.values())) > 1:
                self.fail(now, f"members hold different states of step {step}: {digests}; this must never happen")
                return None
        holders = [name for name, report in reports.items() if report.step == top]
        rolling = [name for name, report in reports.items() if report.step == top - 1 and report.prepared]
        chosen = self._choose(list(reports), holders + rolling)
        source = next(name for name in holders + rolling if name in chosen)
        return self._close(chosen, top, source, reports, now)

    def _go_back(self, reports: dict[str, Report], now: float) -> View | None:
        """Nobody holds a whole state: all load the newest checkpoint, once no lease of others can run any more."""
        missing = [self._seats[name] for name in self._joined if name not in reports]
        if any(not seat.fenced(now, self.policy) for seat in missing):
            return None
        # Those who were left behind: with parts to hold, nobody is before its lease is over.
        former = self._former.values() if self.policy.state == "replicated" else ()
        if any(now - heard <= self.policy.beat_timeout for heard in former):
            return None
        least = max(self.policy.unit, min(self.policy.first, self.size) if self.view is None else 1)
        chosen = self._fill(self._choose(list(reports), []), list(reports), least)
        if len(chosen) < least:
            return None
        try:
            step = self._durable_step()
        except CheckpointError as error:
            self.fail(now, error.message, "CheckpointError")
            return None
        return self._close(chosen, step, None, reports, now)

    def _fill(self, chosen: list[str], present: list[str], least: int) -> list[str]:
        """Where too few are left, some who are to leave stay until others have come."""
        if len(chosen) >= least:
            return chosen
        return (self._willing(present) + [name for name in present if name in self._leaving])[:least]

    def _choose(self, present: list[str], able: list[str]) -> list[str]:
        """The next members: who came and stays, then who waits; and somebody with the state, though it is to leave."""
        chosen = self._willing(present)[: self.size]
        chosen = chosen[: len(chosen) // self.policy.unit * self.policy.unit]
        if able and not any(name in chosen for name in able):
            chosen = [able[0], *chosen][: self.policy.num_slices]
        return chosen

    def _willing(self, present: list[str]) -> list[str]:
        """Those present who are to stay, then those who wait."""
        waiting = sorted(name for name, seat in self._seats.items() if name not in self._joined and seat.closed is None)
        return [name for name in present + waiting if name not in self._leaving]

    def _members_change(self) -> bool:
        if not self._leaving and len(self._seats) == len(self._joined) <= self.size:
            return False
        chosen = self._choose(list(self._joined), list(self._joined))
        return len(chosen) >= self.policy.unit and set(chosen) != self._joined.keys()

    def _close(
        self, chosen: list[str], step: int, source: str | None, reports: dict[str, Report], now: float
    ) -> View | None:
        """Write the new group down, and only then let it be known."""
        epoch = self.epoch + 1
        joined = sorted(((name, self._joined.get(name, epoch)) for name in chosen), key=lambda pair: (pair[1], pair[0]))
        try:
            record = replace(self._record, epoch=epoch, step=step, joined=tuple(joined))
            self._ledger.write(record)
        except RunExists:
            self.deposed = True
            return None
        speeds = [report.speed if (report := self._seats[name].report) else 0.0 for name, _ in joined]
        self._append_events(chosen, step, source, reports, now)
        for name in self._joined.keys() - chosen:
            seat = self._seats.pop(name)
            self._gone.add(name)
            if name in reports:
                self._returned.add(name)
            if seat.died is None:
                self._former[name] = seat.heard
        for name in chosen:
            self._seats[name].report = self._seats[name].reported = None
        self._record, self.epoch, self._joined, self._reached = record, epoch, dict(joined), step
        self._redeal = None
        self._pace.begin()
        sizes = deal(speeds if self.policy.balance == "measured" else [0.0] * len(joined), self.policy.num_slices)
        self.view = View(self.run, epoch, tuple(self._joined), sizes, step, source)
        return self.view

    def _append_events(
        self, chosen: list[str], step: int, source: str | None, reports: dict[str, Report], now: float
    ) -> None:
        group = {name: self._seats[name] for name in self._joined}
        why = causes(group, reports, chosen, self._leaving, "balance" if self._redeal else "broken")
        lost = max(0, self._reached - step) if source is None else 0
        if self.view is None:
            why = [("resume" if group or step else "start", tuple(chosen))]
        elif source is None and (lost or len(reports) < len(group) or self.policy.state == "replicated"):
            why = [("restart", tuple(chosen)), *why]
        down = now - min((seat.trouble() for seat in group.values()), default=now)
        for cause, members in why:
            sizes = (len(group), len(chosen))
            again = lost if cause == "restart" else 0
            self.events.append(Event(now + self._wall, self.epoch + 1, step, cause, *sizes, down, again, members))

    def _wake(self, now: float) -> None:
        """Give members the time back in which this process was suspended and could not have heard them."""
        missed, self._awake = now - self._awake, now
        if missed > self.policy.beat_timeout / 3:
            for seat in self._seats.values():
                seat.heard += missed
                seat.closed = None if seat.closed is None else seat.closed + missed

    def _rules(self) -> bool:
        """Whether nobody has taken the ledger; once it was taken this authority is deposed for good."""
        self.deposed = self.deposed or not self._ledger.holds(self._record.token)
        return not self.deposed

    def _standing(self, beat: Beat, seat: Seat, now: float) -> Standing:
        if beat.member not in self._joined or seat.report is not None:
            return "wait"
        if self.view is not None and beat.epoch < self.epoch:
            return "wait"  # its view is on the way, or it comes again over a new connection
        came = []
        for name in self._joined:
            other = self._seats[name]
            if other.lost(now, self.policy):
                return "broken"
            if other.reported is not None:
                came.append(other.reported)
        if came and not (self._changing and now - min(came) <= self.policy.grace):
            return "broken"
        return "change" if self._changing else "go"

    def _is_gone(self, name: str, epoch: int, now: float) -> bool:
        """Whether a member of that epoch belongs to the run no more; the first time it shows, that is an event."""
        if name not in self._gone and (epoch == 0 or name in self._joined):
            return False
        if name not in self._returned:
            self._tell("fenced", len(self._joined), now, name)
        self._gone.add(name)
        self._returned.add(name)
        return True
