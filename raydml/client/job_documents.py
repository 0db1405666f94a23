"""What the API answers about jobs, as values."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import Field

from raydml.client.documents import Document

if TYPE_CHECKING:
    import pandas

ENDED = frozenset({"succeeded", "failed", "cancelled"})


class Reason(Document):
    """Why a job is in its state; there may be codes that this client does not know."""

    code: str
    message: str


class Parent(Document):
    """The job and step that a forked job began at."""

    job: str
    step: int | None


class Range(Document):
    """Fewest and most workers."""

    min: int
    max: int


class JobFacts(Document):
    """A job as it was when the server answered."""

    id: str
    project: str
    kind: str = "job"  # or sweep
    name: str
    labels: dict[str, str]
    priority: int
    state: str
    reason: Reason | None
    spec: dict[str, Any]
    spec_sha256: str
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline_seconds: int | None
    workers: Range
    progress: dict[str, Any] | None
    attempt: int
    parent: Parent | None
    result: dict[str, Any] | None
    version: int

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ENDED


class Event(Document):
    """Something that happened to a job; `seq` counts from 1 on without a gap."""

    seq: int
    time: datetime
    type: str
    data: dict[str, Any]


class Metric(Document):
    """A line that training logged."""

    seq: int
    attempt: int
    step: int
    time: datetime | None
    data: dict[str, Any]


class Metrics(Document):
    """All lines that training logged so far, in order; a step that was taken again comes again."""

    items: list[Metric]

    def __iter__(self) -> Iterator[Metric]:  # type: ignore[override]
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def to_pandas(self) -> pandas.DataFrame:
        """A row per line: step, attempt, time, and a column for each number. Needs pandas."""
        import pandas

        rows = [{"step": one.step, "attempt": one.attempt, "time": one.time, **one.data} for one in self.items]
        return pandas.DataFrame(rows, columns=None if rows else ["step", "attempt", "time"])


class LogLine(Document):
    """A line of an attempt's log; `id` is how far the log goes up to its end, in bytes."""

    id: int
    text: str


class Checkpoint(Document):
    """A checkpoint of a job's run, which a job can be forked from until it is removed."""

    step: int
    state_sha256: str
    seen_at: datetime
    removed_at: datetime | None


class Change(Document):
    """A change of the group of workers."""

    time: datetime
    step: int
    cause: str
    before: int
    after: int
    members: list[str]
    down: float
    lost: int
    note: str


class Size(Document):
    """From a step on, so many workers."""

    step: int
    workers: int


class Workers(Document):
    """How the group of workers changed."""

    now: int
    wanted: Range
    sizes: list[Size]
    changes: list[Change]


class Artifact(Document):
    """A file of a job's run."""

    path: str
    size: int
    modified_at: datetime
    content_type: str


class Evaluation(Document):
    """How good a job's model is, beside raw inputs, and how good it was while it was trained."""

    state: str
    model_sha256: str | None
    metrics: dict[str, float]
    intervals: dict[str, list[float]]
    baseline: dict[str, float]
    validation: list[dict[str, Any]] = Field(description="step and metrics of each look at the validation split")


class Trial(Document):
    """One configuration of a sweep: its values by field, and what its trials reached on validation classes.

    `difference` is its mean less the best's, over the seeds of both; intervals are of 95 %; `verdict` is `best`,
    `worse`, `not significant`, `too few seeds`, or None where it did not come as far as the best.
    """

    configuration: int
    values: dict[str, Any]
    state: str
    step: int
    score: float | None
    deviation: float | None
    by_seed: dict[int, float]
    seconds: float
    bytes: int
    on_front: bool
    lineage: list[dict[str, Any]]
    reason: str | None
    interval: tuple[float, float] | None = None
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None
    p_value: float | None = None
    verdict: str | None = None


class Trials(Document):
    """The leaderboard of a sweep as it was when the server answered, the best first; `best` is ahead.

    `verdict` is a sentence: whether that may be chance.
    """

    state: str
    objective: str
    cost: str | None
    best: int | None
    verdict: str | None = None
    reality_check: dict[str, Any] | None = None
    total: int
    items: list[Trial]

    def __iter__(self) -> Iterator[Trial]:  # type: ignore[override]
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def to_pandas(self) -> pandas.DataFrame:
        """A row per configuration: its values and what it reached. Needs pandas."""
        import pandas

        rows = [{**one.values, **one.model_dump(exclude={"values", "lineage", "by_seed"})} for one in self.items]
        return pandas.DataFrame(rows)


class Gain(Document):
    """A metric of both sides, and the interval [low, high] of what was gained; significant where that leaves out 0."""

    before: float
    after: float
    gained: float
    interval: list[float]
    significant: bool


class ChangedQuery(Document):
    """A query whose first neighbour became right, or wrong, and its metrics."""

    id: str
    label: str
    before: dict[str, float]
    after: dict[str, float]


class Comparison(Document):
    """What was gained on the same queries from one job to another, or from some seeds of a configuration to others."""

    before: list[str]
    after: list[str]
    protocol: str
    metric: str
    queries: int
    gallery: int
    chance: str
    num_fixed: int
    num_broken: int
    metrics: dict[str, Gain]
    fixed: list[ChangedQuery]
    broken: list[ChangedQuery]
    how: dict[str, Any]
    notes: list[str]
