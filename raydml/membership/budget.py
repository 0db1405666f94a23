"""How much trouble a run may have before it stops: losses and planned leavings apart, by rate and never in total."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["death", "leaving", "resize"]
"""death: a worker was lost without notice. leaving: it was preempted or drained. resize: another size was asked for."""


@dataclass(frozen=True)
class Limits:
    """How often each kind may happen within the last `window` seconds; None: any number.

    `poison` is how many workers have to die in one and the same step until its batch is held responsible.
    """

    death: int | None = 20
    leaving: int | None = None
    resize: int | None = None
    window: float = 3600.0
    poison: int = 3

    def __post_init__(self) -> None:
        assert self.window > 0 and self.poison >= 2, self


@dataclass(frozen=True)
class Within:
    """The run may go on; `left` more of this kind are allowed now, None: any number."""

    left: int | None


@dataclass(frozen=True)
class Spent:
    """It happened oftener within the window than allowed; in `again` seconds the oldest one is forgotten."""

    kind: Kind
    count: int
    limit: int
    again: float


@dataclass(frozen=True)
class Poisoned:
    """The same step killed these workers one after another: its batch is to blame, not the machines."""

    step: int
    members: tuple[str, ...]


@dataclass
class Budget:
    """Counts what happens to workers; `now` in monotonic seconds."""

    limits: Limits = field(default_factory=Limits)
    _times: dict[Kind, deque[float]] = field(default_factory=lambda: defaultdict(deque))
    _killed: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))

    def died(self, members: tuple[str, ...], step: int, now: float) -> Within | Spent | Poisoned:
        """Workers were lost while the step after `step` committed ones was computed.

        Of several at once one counts towards poison: a node took them, no batch.
        """
        for earlier in [earlier for earlier in self._killed if earlier < step]:
            del self._killed[earlier]  # it was passed: whatever killed workers there was not its batch
        victims = self._killed[step]
        if members[0] not in victims:
            victims.append(members[0])
        if len(victims) >= self.limits.poison:
            return Poisoned(step, tuple(victims))
        verdicts = [self._count("death", now) for _ in members]
        return verdicts[-1]

    def left(self, member: str, now: float) -> Within | Spent:
        """A worker left as it was asked to, or with notice."""
        return self._count("leaving", now)

    def resized(self, now: float) -> Within | Spent:
        """Somebody asks for another number of workers."""
        return self._count("resize", now)

    def _count(self, kind: Kind, now: float) -> Within | Spent:
        times, limit = self._times[kind], getattr(self.limits, kind)
        times.append(now)
        while now - times[0] >= self.limits.window:
            times.popleft()
        if limit is None:
            return Within(None)
        if len(times) > limit:
            return Spent(kind, len(times), limit, times[0] + self.limits.window - now)
        return Within(limit - len(times))
