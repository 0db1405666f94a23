"""What is asked when jobs are compared, and what the answer says, as documents."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from api.job_documents import JobId
from raydml.spec import CompareSpec

MOST_SEEDS = 32  # jobs of one side of a comparison


class ComparisonQuestion(CompareSpec):
    """What is compared with a job, and how."""

    with_: list[JobId] = Field(alias="with", min_length=1, max_length=MOST_SEEDS, description="jobs to compare with")
    beside: list[JobId] = Field(
        [], max_length=MOST_SEEDS - 1, description="further jobs of this one's configuration, with other seeds"
    )
    repeats: int = Field(1000, ge=100, le=10_000, description="resamples behind an interval")


class Gain(BaseModel):
    """A metric of both sides, and the interval of what was gained."""

    before: float
    after: float
    gained: float = Field(description="after less before")
    interval: list[float] = Field(description="[low, high] of what was gained")
    significant: bool = Field(description="whether the interval leaves out 0")


class ChangedQuery(BaseModel):
    """A query whose first neighbour became right, or wrong."""

    id: str
    label: str
    before: dict[str, float]
    after: dict[str, float]


class ComparisonAnswer(BaseModel):
    """What was gained on the same queries from one job to another, or from some seeds of a configuration to others."""

    before: list[str] = Field(description="jobs")
    after: list[str] = Field(description="jobs")
    protocol: str
    metric: str = Field(description="distance between embeddings")
    queries: int = Field(description="those with a positive")
    gallery: int = Field(description="items")
    chance: str = Field(description="what the intervals draw anew: queries or classes, and seeds where there are some")
    num_fixed: int
    num_broken: int
    metrics: dict[str, Gain]
    fixed: list[ChangedQuery] = Field(description="those whose MAP@R changed most")
    broken: list[ChangedQuery] = Field(description="those whose MAP@R changed most")
    how: dict[str, Any] = Field(description="confidence, repeats, seed and what else was asked")
    notes: list[str] = Field(description="what a reader should know before believing it")
