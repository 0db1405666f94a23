"""Measured speeds in, who holds the others up and when slices should be dealt anew out: decisions as values.

Speeds are in slices per second of a member's own work, smoothed; 0 stands for unknown. Nothing is decided by a moment:
what is said has held for `hold` seconds, and a new group begins to count anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from raydml.membership.shares import deal

SLOW = 0.5  # of the others' median speed: a member that is slower holds them up
WELL = 0.75  # one that is as fast again does so no more
GAIN = 1.25  # a step takes so many times as long as it had to: slices are dealt anew
REST = 10  # so many times `hold` lie between two deals for speed's sake


@dataclass(frozen=True)
class Straggler:
    """A member is slower than it should be; `others` is the median of the other members' speeds."""

    member: str
    speed: float
    others: float


@dataclass(frozen=True)
class Redeal:
    """Slices should be dealt so; the longest member's own seconds in a step are `now`, and would be `then`."""

    sizes: tuple[int, ...]
    now: float
    then: float


class Pace:
    """Follows the speeds of one run's members; `now` in monotonic seconds."""

    def __init__(self, hold: float) -> None:
        self._hold = hold
        self._slow: dict[str, float] = {}  # who is slow -> since when
        self._told: set[str] = set()
        self._uneven: float | None = None  # since when
        self._rests = float("-inf")  # until then nothing is dealt for speed's sake

    def begin(self) -> None:
        """A new group has formed: its members have other slices, or other neighbours."""
        self._slow, self._uneven = {}, None

    def stragglers(self, speeds: Mapping[str, float], now: float) -> list[Straggler]:
        """Who has been slow for long enough; each is named once, and again only after it was well."""
        self._told &= speeds.keys()
        found = []
        for name, speed in speeds.items():
            others = [other for member, other in speeds.items() if member != name and other]
            usual = median(others) if others and speed else 0.0
            if speed >= WELL * usual:
                self._told.discard(name)
            if speed >= SLOW * usual:
                self._slow.pop(name, None)
            elif now - self._slow.setdefault(name, now) >= self._hold and name not in self._told:
                self._told.add(name)
                found.append(Straggler(name, speed, usual))
        return found

    def redeal(self, sizes: Sequence[int], speeds: Sequence[float], now: float) -> Redeal | None:
        """Whether slices that are dealt by these sizes should be dealt anew, both in rank order."""
        if not all(speeds) or now < self._rests:
            return None
        better = deal(speeds, sum(sizes))
        takes, would = (max(map(lambda size, speed: size / speed, dealt, speeds)) for dealt in (sizes, better))
        if takes <= GAIN * would:
            self._uneven = None
            return None
        if self._uneven is None:
            self._uneven = now
        if now - self._uneven < self._hold:
            return None
        self._rests = now + REST * self._hold
        return Redeal(better, takes, would)
