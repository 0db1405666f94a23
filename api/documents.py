"""What requests may say and what answers do, as documents; limits that the settings change are checked in `limits`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, WithJsonSchema

Id = Annotated[StrictInt | StrictStr, Field(description="a whole number of 64 bits, or a text")]
Ids = Annotated[list[Id], Field(min_length=1)]
Payload = dict[str, Any]
Filter = Annotated[
    dict[str, Any],
    Field(
        description="{field: value, [values], {gt, gte, lt, lte}, {exists} or {equals}}, or {must, should, must_not, "
        "nested}; a payload without the field fails its condition",
        examples=[{"label": "cat", "year": {"gte": 2020}}],
    ),
]
Vectors = Annotated[
    Any,
    WithJsonSchema({"type": "array", "items": {"type": "array", "items": {"type": "number"}}}),
    Field(description="one list of numbers each; in MessagePack also little-endian float32 bytes"),
]
Digest = Annotated[StrictStr | None, Field(description="SHA-256 of the model that made the vectors: another is 409")]
Lsn = Annotated[
    int, Field(description="the number of a change; reads with this as min_lsn see it, whatever process answers")
]
MinLsn = Annotated[
    StrictInt | None, Field(ge=0, description="the lsn that a write answered: 412 where it is not there")
]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._~-]{0,127}$", examples=["faces"])]


class Document(BaseModel):
    """A request: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


class CreateRequest(Document):
    """A new collection: of a dimension, or of a run's model."""

    dimension: StrictInt | None = Field(
        None, ge=1, le=65_536, description="length of a vector; that of the model if none"
    )
    metric: Literal["cosine", "l2", "inner_product"] | None = Field(None, description="cosine if none is given")
    run: Name | None = Field(None, description="the run whose model embeds images and texts")
    model_digest: Digest = None


class UpsertRequest(Document):
    """Points to insert, or to replace: vector and payload."""

    ids: Ids
    vectors: Vectors
    payloads: list[Payload | None] | None = Field(None, description="one object each; {} if none")
    model_digest: Digest = None


class DeleteRequest(Document):
    """Points by id, or all that pass a filter; unknown ids are passed over."""

    ids: Ids | None = None
    filter: Filter | None = None


class GetRequest(Document):
    """Points by id."""

    ids: Ids
    with_vectors: StrictBool = False
    min_lsn: MinLsn = None


class PayloadRequest(Document):
    """A payload for some points: its fields are added to theirs, or it replaces theirs."""

    ids: Ids
    payload: Payload
    merge: StrictBool = True


class SearchRequest(Document):
    """Queries by exactly one of vectors, ids, images and texts, and what is asked of each."""

    vectors: Vectors = None
    ids: Ids | None = Field(None, description="points, which are not among their own hits")
    images: list[StrictStr | bytes] | None = Field(None, min_length=1, description="encoded images, in JSON as base64")
    texts: list[StrictStr] | None = Field(None, min_length=1)
    k: StrictInt = Field(10, ge=1, description="neighbours of each query")
    filter: Filter | None = None
    model_digest: Digest = None
    score_threshold: float | None = Field(
        None, allow_inf_nan=False, description="lowest score; for l2 largest distance"
    )
    group_by: StrictStr | None = Field(None, description="only the nearest hit of each value of this field")
    with_payload: StrictBool = True
    with_vectors: StrictBool = False
    min_lsn: MinLsn = None


class BatchRequest(Document):
    """Several searches, each with its own k and filter."""

    searches: list[SearchRequest] = Field(min_length=1, max_length=1024)


class RecommendRequest(Document):
    """Points like the positive ones and unlike the negative ones."""

    positives: Ids
    negatives: list[Id] = []
    k: StrictInt = Field(10, ge=1)
    filter: Filter | None = None
    min_lsn: MinLsn = None


class SwitchRequest(Document):
    """Aliases to point to collections, or null to remove them: all or none."""

    changes: dict[Name, Name | None] = Field(min_length=1)
    expected: StrictInt | None = Field(None, description="the generation that was seen: 409 where another came since")


class RollBackRequest(Document):
    """Make the aliases what they were before the newest switch."""

    expected: StrictInt | None = None


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


# Bodies that are read by `bodies.read`, which FastAPI does not see.
BODIES = (
    CreateRequest, UpsertRequest, DeleteRequest, GetRequest, PayloadRequest, SearchRequest, BatchRequest,
    RecommendRequest, SwitchRequest, RollBackRequest,
)  # fmt: skip
