"""A run's events in; how many workers trained from which step on, and words for one event and for all, out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def world_sizes(events: Sequence[Mapping[str, Any]]) -> list[dict[str, int]]:
    """From which step on how many workers trained: `step` and `workers`, without steps that were taken again."""
    known: list[dict[str, int]] = []
    for event in events:
        while known and known[-1]["step"] >= event["step"]:
            known.pop()
        if event["after"] and (not known or known[-1]["workers"] != event["after"]):
            known.append({"step": event["step"], "workers": event["after"]})
    return known


def words(event: Mapping[str, Any]) -> str:
    """One event as a line: `step 40: death of worker-3, 3 -> 2 workers, 0.31 s down, 0 steps lost`."""
    whom = f" of {', '.join(event['members'])}" if event["members"] else ""
    line = (
        f"step {event['step']}: {event['cause']}{whom}, {event['before']} -> {event['after']} workers, "
        f"{event['down']:.2f} s down, {event['lost']} steps lost"
    )
    return f"{line}; {event['note']}" if event["note"] else line


def summary(events: Sequence[Mapping[str, Any]]) -> str:
    """All events as a line without times, equal for equal histories; empty without events.

    `2 workers from step 0, 1 from step 40; 1 death, 1 join; 0 steps taken again`.
    """
    if not events:
        return ""
    sizes = ", ".join(f"{entry['workers']} from step {entry['step']}" for entry in world_sizes(events))
    changes = Counter(event["cause"] for event in events if event["cause"] != "start")
    counted = ", ".join(f"{number} {cause}" for cause, number in sorted(changes.items())) or "no change"
    return f"{sizes}; {counted}; {sum(event['lost'] for event in events)} steps taken again"
