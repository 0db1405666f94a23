"""What answers say, as documents."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from api.documents import Id, Payload, Threshold

Lsn = Annotated[
    int, Field(description="the number of a change; reads with this as min_lsn see it, whatever process answers")
]


class Description(BaseModel):
    """A collection."""

    name: str
    dimension: int
    metric: str
    model_digest: str | None
    points: int
    lsn: Lsn


class Listing(BaseModel):
    """One page of names, in order."""

    collections: list[str]
    next: str | None = Field(description="give it as `after` for the next page")


class Written(BaseModel):
    """An upsert that is on the disk."""

    lsn: Lsn


class Changed(BaseModel):
    """A change that is on the disk."""

    points: int = Field(description="how many there were of what was named")
    lsn: Lsn


class Point(BaseModel):
    """A stored point."""

    id: Id
    payload: Payload
    vector: list[float] | None = Field(None, description="where it was asked for; in MessagePack float32 bytes")


class Points(BaseModel):
    """Points, in the order that was asked for."""

    points: list[Point]


class Page(BaseModel):
    """Points in order of insertion."""

    points: list[Point]
    next: str | None = Field(description="give it as `after` for the next page")


class FoundPoint(BaseModel):
    """A hit: cosine and inner product, higher is nearer; l2 is the distance, lower is nearer."""

    id: Id
    score: float
    payload: Payload | None = None
    vector: list[float] | None = None


class SearchAnswer(BaseModel):
    """The hits of each query, nearest first."""

    results: list[list[FoundPoint]]


class BatchAnswer(BaseModel):
    """The answer of each search."""

    answers: list[SearchAnswer]


class Class(BaseModel):
    """One query's class: null where too few neighbours agree."""

    label: Any
    share: float = Field(description="of the neighbours that have this class")
    hits: list[FoundPoint]


class Classes(BaseModel):
    """The class of each query."""

    results: list[Class]


class Verdict(BaseModel):
    """Whether two points are the same by the threshold."""

    same: bool
    score: float


class Verdicts(BaseModel):
    """The verdict on each pair."""

    results: list[Verdict]


class Identity(BaseModel):
    """One query's identity: null for somebody unknown."""

    identity: Any
    score: float | None
    hits: list[FoundPoint] = Field(description="the nearest of each identity")


class Identities(BaseModel):
    """The identity of each query."""

    results: list[Identity]


class Duplicates(BaseModel):
    """Groups of ids, in order of insertion."""

    groups: list[list[Id]]


class Explanation(BaseModel):
    """Why a query found what it found."""

    margin: float | None = Field(description="by which the first identity is ahead; null where there are not two")
    hubness: list[float] = Field(description="of each hit: how often it is a neighbour, beside the average point")
    hits: list[FoundPoint] = Field(description="the nearest of each identity")


class Explanations(BaseModel):
    """The explanation of each query."""

    results: list[Explanation]


class Compacted(BaseModel):
    """What was merged; nothing where it was not worth it."""

    segments: int
    rows: int = Field(description="of these segments, with the dead ones")
    kept: int


class Filled(BaseModel):
    """A shadow after some more of its points were embedded."""

    embedded: int
    complete: bool = Field(description="whether every point is there")
    points: int = Field(description="of the shadow")


class ComparedQuality(BaseModel):
    """One collection on the queries of a comparison."""

    right: int = Field(description="queries whose nearest point is of their identity")
    interval: tuple[float, float] = Field(description="of their share, 95 %")
    recall: float = Field(description="of the points of a query's identity, the share among its neighbours")
    threshold: Threshold | None = Field(description="null where there are too few points for the false accept rate")


class Compared(BaseModel):
    """The same points searched in a collection and in its shadow."""

    queries: int
    current: ComparedQuality
    shadow: ComparedQuality
    better: int = Field(description="queries that the shadow alone gets right")
    worse: int = Field(description="queries that the collection alone gets right")
    kept_neighbours: float = Field(description="the share of neighbours that stay")
    changed_first: float = Field(description="the share of queries with another nearest point")


class Stats(BaseModel):
    """Points, the parts that they lie in, and the measured recall of approximate searches by this process."""

    points: int
    sequence: Lsn
    parts: list[dict[str, Any]]
    recall: dict[str, Any]


class Snapshots(BaseModel):
    """Names of a collection's snapshots, in order."""

    snapshots: list[str]


class Value(BaseModel):
    """A value of a field, and how many points have it."""

    value: Any
    points: int


class Facet(BaseModel):
    """Values of a field, the most frequent first."""

    values: list[Value]


class AliasesAnswer(BaseModel):
    """All aliases, and the number of their generation."""

    generation: int
    aliases: dict[str, str]
