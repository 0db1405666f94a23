"""How an authority decides: sizes and times, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Policy:
    """Sizes in workers, times in seconds.

    first         workers to wait for where this authority has formed no group yet and nobody holds a state
    most          the largest group, at most num_slices
    num_slices    V, the slices that are dealt; where members hold the same slices, times their number
    beat_timeout  without a sign of life for so long, a member is fenced
    grace         a closed connection may take so long to come back; a boundary may take the members so long
    lease         granted with each beat, from its sending; below beat_timeout by more than clocks drift in that time
    balance       slices are dealt equally, or by measured speed
    hold          speeds must be uneven for so long until a straggler is named, or slices are dealt anew
    unit          a group is a multiple of so many members, who hold one copy of the model together
    state         replicated: every member holds the whole state, so that survivors go on with it; sharded: each holds
                  parts, so that every new group loads the newest checkpoint, at planned changes one of that very step
    """

    first: int
    most: int
    num_slices: int
    beat_timeout: float = 4.0
    grace: float = 0.25
    lease: float = 3.0
    balance: Literal["equal", "measured"] = "equal"
    hold: float = 30.0
    unit: int = 1
    state: Literal["replicated", "sharded"] = "replicated"

    def __post_init__(self) -> None:
        assert 1 <= self.first <= self.most <= self.num_slices, self
        assert self.first % self.unit == self.most % self.unit == 0, self
        assert 0 < self.grace < self.lease < self.beat_timeout, self
