"""CPUs and what each job needs of them in; how many workers each may have out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Need:
    """A job's workers: the fewest and the most, and the CPUs of each; its driver takes none."""

    job: str
    priority: int
    min: int
    max: int
    cpus: float

    @property
    def least(self) -> float:
        """CPUs without which it cannot train."""
        return self.min * self.cpus


def share(cpus: float, fixed: Sequence[float], holding: Sequence[Need], waiting: Sequence[Need]) -> dict[str, int]:
    """Workers of each job that runs or may start now; those that have to wait are left out.

    Who holds keeps at least its fewest. Waiting ones start by priority, then age, none before its turn; one that would
    not fit an empty cluster holds nobody up. What is left goes to priority, then age, up to the most of each.
    `fixed` are CPUs that cannot be dealt: of jobs that are stopping.
    """
    free = cpus - sum(fixed) - sum(need.least for need in holding)
    admitted = list(holding)
    for need in _in_turn(waiting):
        if need.least > cpus:
            continue
        if need.least > free:
            break
        admitted.append(need)
        free -= need.least
    dealt = {}
    for need in _in_turn(admitted):
        more = min(need.max - need.min, int(max(free, 0.0) / need.cpus))
        dealt[need.job] = need.min + more
        free -= more * need.cpus
    return dealt


def _in_turn(needs: Sequence[Need]) -> list[Need]:
    return sorted(needs, key=lambda need: (-need.priority, need.job))  # ids sort by time
