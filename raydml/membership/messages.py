"""What members and their authority say to each other: plain values that name the run, the epoch and the step.

A member is one worker process of one run. Epochs number the groups of a run, from 1 on and never twice; a message of
another epoch than the receiver's is refused or answered with what holds now.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Standing = Literal["go", "change", "broken", "wait", "gone", "over"]
"""What the authority tells a member with each beat:

go      train on
change  train on; at the end of a step, come for a new view
broken  somebody of your epoch is lost: abort every collective, come for a new view
wait    you are not in a group yet: you have reported, and the view is not closed
gone    you were counted as lost, or are to leave: what you hold no longer belongs to the run
over    the run has ended, well or not: stop
"""


@dataclass(frozen=True)
class Report:
    """What a member holds when it comes for a view, for the first time or after its group was left.

    `epoch` is the group it comes from, 0 for none. `step` is the number of steps in its state; None: it holds no state
    of this run and must be given one. `prepared`: it also holds the reduced gradients of the next step, kept since the
    vote on it failed. `digest` names the lineage of its state: equal for equal histories. `speed` is in slices per
    second, 0 while unknown; `node` is the machine it runs on.
    """

    member: str
    epoch: int = 0
    step: int | None = None
    prepared: bool = False
    digest: str = ""
    speed: float = 0.0
    node: str = ""


@dataclass(frozen=True)
class View:
    """One agreed group: its members in rank order, how many slices each takes, and the step to go on from.

    `step` is the number of steps in the state that all go on with. Who holds that state keeps it; who is prepared for
    its last step commits that one; everybody else is given it by `source`. `source` is None where no member holds a
    whole state: then all load the newest whole checkpoint, of step `step`, or begin anew at step 0.
    """

    run: str
    epoch: int
    members: tuple[str, ...]
    deal: tuple[int, ...]
    step: int
    source: str | None

    @property
    def size(self) -> int:
        """Number of members, W."""
        return len(self.members)

    def rank(self, member: str) -> int:
        """Place of a member in the group."""
        return self.members.index(member)


@dataclass(frozen=True)
class Beat:
    """A sign of life, a few times a second, from a thread that training does not block; `speed` as in a report."""

    member: str
    epoch: int
    step: int
    speed: float = 0.0


@dataclass(frozen=True)
class Pulse:
    """The answer to a beat: how the member stands, and how many seconds from the beat's sending it may commit alone."""

    standing: Standing
    epoch: int
    lease: float


@dataclass(frozen=True)
class Event:
    """One change of the group, as it is recorded and shown.

    `cause` is start, resume, join, resize, drain, death, lost (no sign of life), broken (its connections, or a lease
    that ran out: all came back), restart (from a checkpoint: nobody held a whole state any more), balance (slices are
    dealt anew), fenced or straggler; the last two change no group.
    `before` and `after` are numbers of members; `down` is the seconds from the cause to the new view; `lost` the
    committed steps that have to be taken again; `members` whom it concerns; `note` what there is to know besides.
    """

    time: float
    epoch: int
    step: int
    cause: str
    before: int
    after: int
    down: float = 0.0
    lost: int = 0
    members: tuple[str, ...] = field(default=())
    note: str = ""
