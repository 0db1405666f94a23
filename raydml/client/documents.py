"""What the API answers about collections, as values; a field that a newer server adds is there too."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict

from raydml.client.bodies import vector

Id: TypeAlias = int | str
Payload: TypeAlias = dict[str, Any]
Vector = Annotated[Any, BeforeValidator(vector)]  # a numpy array (dimension,) float32


class Document(BaseModel):
    """An answer."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Description(Document):
    """A collection."""

    name: str
    dimension: int
    metric: str
    model_digest: str | None
    points: int
    lsn: int


class Changed(Document):
    """A change that is on the disk, and how many points there were of what was named."""

    points: int
    lsn: int


class Point(Document):
    """A stored point."""

    id: Id
    payload: Payload
    vector: Vector = None


class Hit(Document):
    """A point that was found: cosine and inner product, higher is nearer; l2 is the distance, lower is nearer."""

    id: Id
    score: float
    payload: Payload = {}
    vector: Vector = None


class Explanation(Document):
    """Why a query found what it found: the nearest of each identity, by how much the first is ahead, which are hubs."""

    margin: float | None
    hubness: list[float]
    hits: list[Hit]


class Compacted(Document):
    """Segments that were merged, their rows with the dead ones, and the rows that were kept."""

    segments: int
    rows: int
    kept: int


class Class(Document):
    """A query's class, None where too few neighbours agree, and the share of those that do."""

    label: Any
    share: float
    hits: list[Hit]


class Identity(Document):
    """A query's identity, None for somebody unknown, and the nearest hit of each identity."""

    identity: Any
    score: float | None
    hits: list[Hit]


class Verdict(Document):
    """Whether two points are the same by a threshold."""

    same: bool
    score: float


class Threshold(Document):
    """A score above which (for l2 below which) two points are the same, and how often that is wrong."""

    field: str
    score: float
    target: float | None = None
    false_accept_rate: float | None = None
    interval: tuple[float, float] | None = None
    impostors: int | None = None
    true_accept_rate: float | None = None
    genuine: int | None = None


class Stats(Document):
    """The parts that a collection lies in, and the measured recall of its approximate searches."""

    points: int
    sequence: int
    parts: list[dict[str, Any]]
    recall: dict[str, Any]


class Value(Document):
    """A value of a field, and how many points have it."""

    value: Any
    points: int


class Aliases(Document):
    """All aliases, and the number of their generation."""

    generation: int
    aliases: dict[str, str]
