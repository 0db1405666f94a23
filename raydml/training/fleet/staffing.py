"""How many workers a run has and how many it wants in; which extras to start, to ask out and to stop comes out.

Pure: no Ray and no clock. A run's workers are of two kinds. The *group* is the fixed minimum, which Ray Train keeps
alive; an *extra* is one worker beyond it, which `Fleet` keeps alive by what is decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# How a worker's work ended, where that is not the end of the run.
LEFT = "left"  # asked to leave: its node drains, or fewer workers are wanted
LOST = "lost"  # counted as lost while it lived: a new process comes in its place

Phase = Literal["pending", "working", "leaving"]

WINDOW = 120.0  # seconds for which an ending is remembered
LONGEST_PAUSE = 30.0  # seconds


@dataclass(frozen=True)
class Extra:
    """One extra as a turn sees it: `pending` until its process is ready, `leaving` once it was asked to leave."""

    name: str
    phase: Phase


@dataclass(frozen=True)
class Start:
    """Start one extra."""


@dataclass(frozen=True)
class Leave:
    """Ask a working extra to leave at the next step boundary."""

    name: str


@dataclass(frozen=True)
class Stop:
    """Stop an extra that has not begun to work."""

    name: str


Decision = Start | Leave | Stop


def decide(
    wanted: int, minimum: int, away: int, extras: Sequence[Extra], may_start: bool, gone: int = 0
) -> list[Decision]:
    """What brings the extras to their number: `wanted - minimum`, and one for each of `away` group workers.

    `extras` stand in the order in which they were started. Too many: the newest go first, those that do not work yet
    before those that do. `away` are group workers that left a draining node, until Ray Train has replaced them. `gone`
    are those whose node died: nobody is started in their place, which Ray Train does, but as many extras stay: one of
    them may be all that holds the state, in the room that the replacement waits for.
    """
    staying = [extra for extra in extras if extra.phase != "leaving"]
    missing = max(0, wanted - minimum) + away - len(staying)
    if missing >= 0:
        return [Start()] * missing if may_start else []
    newest_first = sorted(reversed(staying), key=lambda extra: extra.phase == "working")
    leaving = newest_first[: max(0, -missing - gone)]
    return [Leave(extra.name) if extra.phase == "working" else Stop(extra.name) for extra in leaving]


def pause(endings: Sequence[float], now: float) -> float:
    """Seconds to wait before the next start: none after the first ending in two minutes, then 1, 2, 4, ... up to 30.

    `endings` are the times of turns in which something ended that should not have; several in one turn, as when a node
    dies, count once.
    """
    recent = [time for time in endings if now - time < WINDOW]
    if len(recent) < 2:
        return 0.0
    wait = min(LONGEST_PAUSE, 2.0 ** (len(recent) - 2))
    return max(0.0, recent[-1] + wait - now)
