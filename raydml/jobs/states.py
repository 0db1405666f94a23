"""The states of a job and the one table of moves between them."""

from __future__ import annotations

from typing import Literal, get_args

State = Literal[
    "queued",
    "starting",
    "running",
    "recovering",
    "resizing",
    "paused",
    "stopping",
    "succeeded",
    "failed",
    "cancelled",
]
Desired = Literal["run", "pause", "cancel", "kill"]
"""What the job's owner wants; kill is cancel without a last checkpoint."""

STATES: tuple[State, ...] = get_args(State)
TERMINAL: frozenset[State] = frozenset({"succeeded", "failed", "cancelled"})
LIVE: frozenset[State] = frozenset({"starting", "running", "recovering", "resizing", "stopping"})
"""States in which a process may be at work for the job."""

# A state -> where a job may go from it. Nothing leaves a terminal state.
MOVES: dict[State, frozenset[State]] = {
    "queued": frozenset({"starting", "paused", "cancelled", "failed"}),
    "starting": frozenset({"running", "recovering", "stopping", "succeeded", "failed"}),
    "running": frozenset({"resizing", "recovering", "stopping", "succeeded", "failed"}),
    "resizing": frozenset({"running", "recovering", "stopping", "succeeded", "failed"}),
    "recovering": frozenset({"starting", "running", "stopping", "failed"}),
    "stopping": frozenset({"paused", "cancelled", "failed", "succeeded"}),
    "paused": frozenset({"queued", "cancelled", "failed"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}


def may_move(before: State, after: State) -> bool:
    """Whether the table allows it."""
    return after in MOVES[before]
