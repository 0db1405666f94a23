"""What requests about jobs may say, and what answers say, as documents."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, StrictInt, StrictStr

from api.documents import Document, Name
from raydml.jobs.records import Kind
from raydml.jobs.states import State

JOB_ID = r"^job_[0-9a-hjkmnp-tv-z]{26}$"
LABEL_KEY = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$"
_YEAR = 366 * 24 * 3600

LabelKey = Annotated[str, Field(pattern=LABEL_KEY)]
LabelValue = Annotated[StrictStr, Field(pattern=r"^[^\x00-\x1f\x7f]{0,200}$")]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=64, examples=[{"team": "search"}])]
Priority = Annotated[StrictInt, Field(ge=-100, le=100, description="more goes first")]
Workers = Annotated[StrictInt, Field(ge=1, le=65_536)]
JobId = Annotated[str, Field(pattern=JOB_ID)]
Time = Annotated[str, Field(description="UTC, RFC 3339, milliseconds", examples=["2026-11-22T02:03:29.123Z"])]
Step = Annotated[StrictInt, Field(ge=0, lt=1 << 53)]

Spec = Annotated[
    dict[str, Any] | StrictStr,
    Field(
        description="a spec as an object (/v1/schemas/job), or as the text of a YAML or JSON file: mistakes in a text "
        "are named with their lines",
        examples=[{"name": "glyphs", "data": {"kind": "glyphs"}, "loss": {"kind": "triplet"}}],
    ),
]


class PlanRequest(Document):
    """A spec to look at."""

    spec: Spec


class CreateJobRequest(Document):
    """A job: a spec and how it is to be treated."""

    spec: Spec
    name: Name | None = Field(None, description="that of the spec if none is given; need not be unique")
    labels: Labels = Field({}, description="to find it by")
    priority: Priority = 0
    deadline_seconds: StrictInt | None = Field(
        None, ge=1, le=10 * _YEAR, description="after which it fails, from its creation on"
    )


class PatchSweepRequest(Document):
    """A JSON merge patch (RFC 7396): what is not named stays; a label that is null is removed."""

    labels: Annotated[dict[LabelKey, LabelValue | None], Field(max_length=64)] | None = Field(
        None, description="null removes all"
    )
    priority: Priority | None = Field(None, description="null: 0")


class PatchJobRequest(PatchSweepRequest):
    """The same, and the most workers."""

    max_workers: Workers | None = Field(None, description="null: those of the spec")


class WorkersRange(Document):
    """Fewest and most workers."""

    min: Workers
    max: Workers


class ResizeRequest(Document):
    """How many workers a job may have from now on."""

    workers: Workers | WorkersRange = Field(description="a number is the most and leaves the fewest")


class ForkRequest(Document):
    """A new job that goes on from a checkpoint of this one."""

    step: Step | None = Field(None, description="of the checkpoint; the last one if none is given")
    changes: dict[str, Any] = Field({}, description="a JSON merge patch of the spec")
    name: Name | None = None
    labels: Labels | None = Field(None, description="those of this job if none are given")


class Reason(BaseModel):
    """Why a job is in its state."""

    code: str = Field(description="snake_case; there may be new ones", examples=["deadline_exceeded"])
    message: str


class Parent(BaseModel):
    """Where a forked job began."""

    job: str
    step: int


class Range(BaseModel):
    """Fewest and most workers."""

    min: int
    max: int


class Job(BaseModel):
    """A job as it is now."""

    id: str = Field(pattern=JOB_ID)
    project: str
    kind: Kind = Field(description="a sweep searches, and has more to show under /v1/sweeps")
    name: str
    labels: dict[str, str]
    priority: int
    state: State
    reason: Reason | None
    spec: dict[str, Any]
    spec_sha256: str
    created_at: Time
    updated_at: Time
    started_at: Time | None
    finished_at: Time | None
    deadline_seconds: int | None
    workers: Range
    progress: dict[str, Any] | None = Field(description="step, steps, workers and more, once it has begun")
    attempt: int = Field(description="how often it was started; 0: not yet")
    parent: Parent | None
    result: dict[str, Any] | None = Field(description="model_sha256, metrics, collection and more, once it succeeded")
    version: int = Field(description="grows with each change; the ETag")


class JobPage(BaseModel):
    """Jobs, the newest first."""

    items: list[Job]
    next_cursor: str | None = Field(description="give it as `cursor` for the next page, with the same filters")


class Event(BaseModel):
    """Something that happened to a job."""

    seq: int = Field(description="from 1 on, without a gap")
    time: Time
    type: str = Field(
        description="state, membership, checkpoint, evaluation, watch, verb, attempt, trial; there may be new ones"
    )
    data: dict[str, Any]


class EventPage(BaseModel):
    """Events in order."""

    items: list[Event]
    next: int = Field(description="give it as `after` for what comes next")


class Metric(BaseModel):
    """A line that training logged."""

    seq: int = Field(description="from 1 on, without a gap")
    attempt: int
    step: int
    time: Time | None
    data: dict[str, Any] = Field(description="loss, grad_norm, step_seconds, validation and more")


class MetricPage(BaseModel):
    """Metrics in order; a step that was taken again comes again."""

    items: list[Metric]
    next: int = Field(description="give it as `after` for what comes next")


class LogLine(BaseModel):
    """A line of a log; a very long one comes in parts."""

    id: int = Field(description="bytes of the log up to the end of this line")
    text: str


class LogPage(BaseModel):
    """Lines of an attempt's log, in order."""

    attempt: int = Field(description="0: there was none yet")
    items: list[LogLine]
    next: int = Field(description="give it as `after` for what comes next")


class Checkpoint(BaseModel):
    """A checkpoint of a job's run."""

    step: int
    state_sha256: str
    seen_at: Time
    removed_at: Time | None = Field(description="when it had made room for later ones; null: it is there")


class Checkpoints(BaseModel):
    """Checkpoints, the first step first."""

    items: list[Checkpoint]


class Change(BaseModel):
    """A change of the group of workers."""

    time: Time
    step: int
    cause: str = Field(description="start, resume, join, resize, drain, death, lost, restart, balance and more")
    before: int
    after: int
    members: list[str]
    down: float = Field(description="seconds from the cause until training went on")
    lost: int = Field(description="steps that had to be taken again")
    note: str


class Size(BaseModel):
    """From a step on, so many workers."""

    step: int
    workers: int


class WorkersAnswer(BaseModel):
    """How the group of workers changed."""

    now: int = Field(description="workers that train now")
    wanted: Range
    sizes: list[Size] = Field(description="without steps that were taken again")
    changes: list[Change]


class Artifact(BaseModel):
    """A file of a job's run."""

    path: str = Field(examples=["model/model.safetensors"])
    size: int = Field(description="bytes")
    modified_at: Time
    content_type: str


class ArtifactPage(BaseModel):
    """Files by path."""

    items: list[Artifact]
    next: str | None = Field(description="give it as `after` for the next page")


class Evaluation(BaseModel):
    """How good the model is, measured on the test split; and on the validation split while it was trained."""

    state: State
    model_sha256: str | None
    metrics: dict[str, float]
    intervals: dict[str, list[float]] = Field(description="[low, high] of each metric, by resampled queries")
    baseline: dict[str, float] = Field(description="the same metrics of the raw inputs")
    validation: list[dict[str, Any]] = Field(description="step and metrics of each evaluation during training")


class SchemaList(BaseModel):
    """Names of the JSON Schemas."""

    schemas: list[str]


# Bodies that are read by `bodies.read`, which FastAPI does not see.
BODIES = (PlanRequest, CreateJobRequest, PatchSweepRequest, PatchJobRequest, ResizeRequest, ForkRequest)
