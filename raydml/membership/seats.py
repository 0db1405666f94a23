"""What an authority knows of each member: when it was heard, what it reported, whether it has to be waited for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from raydml.membership.messages import Report
from raydml.membership.policy import Policy


@dataclass(eq=False)
class Seat:
    """A member of the group, or one that waits to join; times in monotonic seconds, None for never."""

    heard: float
    report: Report | None = None
    reported: float | None = None
    closed: float | None = None
    died: float | None = None
    speed: float = 0.0

    def fenced(self, now: float, policy: Policy) -> bool:
        """Whether its lease is over for certain."""
        return self.died is not None or now - self.heard > policy.beat_timeout

    def lost(self, now: float, policy: Policy) -> bool:
        """Whether the others need not wait for it."""
        return self.fenced(now, policy) or (self.closed is not None and now - self.closed > policy.grace)

    def trouble(self) -> float:
        """When it stopped training, as far as is known."""
        return min(time for time in (self.died, self.closed, self.reported, self.heard) if time is not None)


def causes(
    group: Mapping[str, Seat], present: Iterable[str], chosen: Iterable[str], leaving: Mapping[str, str], otherwise: str
) -> list[tuple[str, tuple[str, ...]]]:
    """Why the members `group` become `chosen`, of whom `present` came: pairs of a cause and the members concerned."""
    here, kept = set(present), set(chosen)
    why = {
        "death": [name for name, seat in group.items() if name not in here and seat.died is not None],
        "lost": [name for name, seat in group.items() if name not in here and seat.died is None],
        "drain": [name for name in group if name in here - kept and leaving.get(name) == "drain"],
        "resize": [name for name in group if name in here - kept and leaving.get(name) != "drain"],
        "join": sorted(kept - group.keys()),
    }
    found = [(cause, tuple(names)) for cause, names in why.items() if names]
    return found or [(otherwise, ())]
