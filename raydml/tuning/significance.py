"""The rows of a study in; how each compares with the best over paired seeds, and a sentence of that, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from raydml.evaluation.leaderboard import Standing, leaderboard

CONFIDENCE = 0.95
UNKNOWN = dict.fromkeys(("interval", "difference", "difference_interval", "p_value", "verdict"))


class Scored(Protocol):
    """What of a row is compared: `by_seed` are its trials' scores at `step`."""

    @property
    def configuration(self) -> int: ...
    @property
    def state(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def by_seed(self) -> Mapping[int, float]: ...


def against_the_best(rows: Sequence[Scored]) -> dict[int, Standing]:
    """By configuration, those that came as far as the furthest; no fewer steps are held against anybody.

    Who was stopped earlier is missing: it was given up, not compared. So is who failed.
    """
    alive = [row for row in rows if row.by_seed and row.state != "failed"]
    last = max((row.step for row in alive), default=0)
    scores = {f"{row.configuration:05d}": row.by_seed for row in alive if row.step == last}
    if not scores:
        return {}
    return {int(each.name): each for each in leaderboard(scores, confidence=CONFIDENCE)}


def comparison(standing: Standing | None) -> dict[str, Any]:
    """What a document says of it beside the row's own mean and steps; None each where it was not compared."""
    return {name: standing.to_dict()[name] for name in UNKNOWN} if standing else dict(UNKNOWN)


def verdict(standings: Mapping[int, Standing], total: int) -> str:
    """One sentence: which of `total` configurations is best, and whether that can be told from chance."""
    if not standings:
        return "no configuration was evaluated: nothing can be said"
    best = next(number for number, each in standings.items() if each.verdict == "best")
    counts = [sum(each.verdict == word for each in standings.values()) for word in ("worse", "not significant")]
    earlier = total - len(standings)
    stopped = f"; {earlier} did not come as far, and are not compared" if earlier else ""
    if len(standings) == 1:
        return f"configuration {best} is ahead{stopped}: nothing can be said of a difference"
    if not any(counts):
        return (
            f"configuration {best} is ahead with one seed{stopped}: nothing can be said of a difference, it may be "
            f"chance; tune.seeds: 3 or more would tell"
        )
    return (
        f"configuration {best} is ahead; {counts[0]} significantly worse, {counts[1]} not distinguishable from it "
        f"(paired t-tests over {standings[best].seeds} seeds, Holm's correction, {CONFIDENCE:.0%}){stopped}"
    )
