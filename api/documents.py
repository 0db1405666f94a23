"""What requests may say, as documents; limits that the settings change are checked in `limits`."""

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


class NewCollection(CreateRequest):
    """A new collection, with its name."""

    name: Name


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


class Query(Document):
    """Queries by exactly one of vectors, ids, images and texts."""

    vectors: Vectors = None
    ids: Ids | None = Field(None, description="points, which are not among their own hits")
    images: list[StrictStr | bytes] | None = Field(None, min_length=1, description="encoded images, in JSON as base64")
    texts: list[StrictStr] | None = Field(None, min_length=1)
    k: StrictInt = Field(10, ge=1, description="neighbours of each query")
    filter: Filter | None = None
    model_digest: Digest = None
    min_lsn: MinLsn = None


class SearchRequest(Query):
    """Queries, and what is asked of each."""

    score_threshold: float | None = Field(
        None, allow_inf_nan=False, description="lowest score; for l2 largest distance"
    )
    group_by: StrictStr | None = Field(None, description="only the nearest hit of each value of this field")
    with_payload: StrictBool = True
    with_vectors: StrictBool = False
    exact: StrictBool = Field(False, description="use no approximate index")


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


class ClassifyRequest(Query):
    """Queries, each to be given the commonest class among its nearest points, or none."""

    field: StrictStr = Field(description="of payloads, which holds the class")
    least_share: float = Field(0.5, ge=0, le=1, description="of the neighbours that must agree")
    least_score: float | None = Field(None, allow_inf_nan=False, description="that a neighbour must have to count")


class CalibrateRequest(Document):
    """A threshold to choose on the collection's own points."""

    field: StrictStr = Field(description="of payloads, which holds the identity")
    kind: Literal["pairs", "identify"] = Field(description="a threshold for verify, or one for identify")
    false_accept_rate: float = Field(0.01, gt=0, lt=1, description="how seldom a stranger may be accepted")
    seed: StrictInt = 0


class Threshold(Document):
    """What calibrate answered; `field` and `score` are all that is used."""

    field: StrictStr
    score: float = Field(allow_inf_nan=False)
    target: float | None = None
    false_accept_rate: float | None = Field(None, description="measured on impostors that did not choose the score")
    interval: tuple[float, float] | None = Field(None, description="95 % Wilson interval of it")
    impostors: int | None = None
    true_accept_rate: float | None = None
    genuine: int | None = None


class VerifyRequest(Document):
    """Pairs of points: is it the same?"""

    pairs: list[tuple[Id, Id]] = Field(min_length=1)
    threshold: Threshold
    min_lsn: MinLsn = None


class IdentifyRequest(Query):
    """Queries: who is it, if anybody known?"""

    threshold: Threshold


class DuplicatesRequest(Document):
    """Groups of points that hang together by pairs at least this near (l2: at most this far)."""

    threshold: float = Field(allow_inf_nan=False)
    min_lsn: MinLsn = None


class ExplainRequest(Query):
    """Queries: why do they find what they find?"""

    field: StrictStr = Field(description="of payloads, which holds the identity")
    seed: StrictInt = Field(0, ge=0, description="of the points whose neighbours are counted")


class NegativesRequest(Document):
    """The points that are confused with points of other identities."""

    field: StrictStr = Field(description="of payloads, which holds the identity")
    k: StrictInt = Field(5, ge=1, description="points of other identities for each point")
    min_lsn: MinLsn = None


class FillRequest(Document):
    """Points of a collection to embed anew, into its shadow."""

    run: Name = Field(description="the run whose model embeds them")
    field: StrictStr = Field(description="of payloads, with the text, or an image's path in the server's folder")
    kind: Literal["text", "image"] = Field(description="what the field holds")
    limit: StrictInt = Field(1000, ge=1, description="points of one request; send it again until it is complete")


class ReportRequest(Document):
    """A comparison of a collection with its shadow."""

    field: StrictStr = Field(description="of payloads, which holds the identity")
    k: StrictInt = Field(10, ge=1)
    queries: StrictInt = Field(1000, ge=1, description="points that both are searched for")
    false_accept_rate: float = Field(0.01, gt=0, lt=1, description="at which their thresholds are compared")
    seed: StrictInt = Field(0, ge=0)


class ReplaceRequest(Document):
    """An alias that is to point to the shadow instead."""

    alias: Name


class RestoreRequest(Document):
    """A snapshot becomes a new collection."""

    to: Name = Field(description="the name of a collection that does not exist")


class SwitchRequest(Document):
    """Aliases to point to collections, or null to remove them: all or none."""

    changes: dict[Name, Name | None] = Field(min_length=1)
    expected: StrictInt | None = Field(None, description="the generation that was seen: 409 where another came since")


class RollBackRequest(Document):
    """Make the aliases what they were before the newest switch."""

    expected: StrictInt | None = None


# Bodies that are read by `bodies.read`, which FastAPI does not see.
BODIES = (
    CreateRequest, UpsertRequest, DeleteRequest, GetRequest, PayloadRequest, SearchRequest, BatchRequest,
    RecommendRequest, SwitchRequest, RollBackRequest, ClassifyRequest, CalibrateRequest, VerifyRequest,
    IdentifyRequest, DuplicatesRequest, RestoreRequest, NewCollection, ExplainRequest, NegativesRequest, FillRequest,
    ReportRequest, ReplaceRequest,
)  # fmt: skip
