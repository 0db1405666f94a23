"""What answers about sweeps say, as documents."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from api.job_documents import Job
from raydml.jobs.states import State

TrialState = Literal["waiting", "running", "paused", "trained", "stopped", "failed"]
Verdict = Literal["best", "worse", "not significant", "too few seeds"]


class Sweep(Job):
    """A search over fields of a spec, a job of its own: `workers` are trials at once, and its run is the winner's."""

    progress: dict[str, Any] | None = Field(description="trials: how often each thing happened; the winner's steps")
    result: dict[str, Any] | None = Field(
        description="winner (configuration, values, score), best_spec, and what the winner's run came to, once it ended"
    )


class SweepPage(BaseModel):
    """Sweeps, the newest first."""

    items: list[Sweep]
    next_cursor: str | None = Field(description="give it as `cursor` for the next page, with the same filters")


class Trial(BaseModel):
    """One configuration of a sweep, and what its trials reached on validation classes."""

    configuration: int
    values: dict[str, Any] = Field(description="by dotted field")
    state: TrialState
    step: int
    score: float | None = Field(description="mean over seeds, and folds, at that step")
    deviation: float | None = Field(description="standard deviation over seeds; null: of one seed")
    by_seed: dict[str, float]
    seconds: float = Field(description="of its steps, mean over seeds")
    bytes: int = Field(description="of its model's weights")
    on_front: bool = Field(description="whether no other is better in both objectives, where there are two")
    lineage: list[dict[str, Any]] = Field(description="whose checkpoints it went on from (pbt)")
    reason: str | None = Field(description="why it failed")
    interval: tuple[float, float] | None = Field(description="95 %, of the mean over seeds; null: of one seed")
    difference: float | None = Field(description="its mean less the best's, over the seeds of both")
    difference_interval: tuple[float, float] | None = Field(description="95 %, of the difference")
    p_value: float | None = Field(description="of the paired t-test against the best, by Holm's correction")
    verdict: Verdict | None = Field(description="null: it did not come as far as the best, and is not compared")


class Trials(BaseModel):
    """The leaderboard of a sweep, as it is now: the best first."""

    state: State
    objective: str
    cost: str | None
    best: int | None = Field(description="the configuration that is ahead")
    verdict: str | None = Field(description="a sentence: whether that may be chance; null: the study has not begun")
    reality_check: dict[str, Any] | None = Field(
        description="of protocol reality_check, once there is a winner: what its models reach on test classes, "
        "separated and concatenated"
    )
    total: int = Field(description="configurations so far")
    items: list[Trial]
