"""/v1/collections/{name}/points: insert, replace, remove, read and page through points."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response

from api import bodies
from api.answers import Changed, Facet, Page, Points, Value, Written
from api.documents import DeleteRequest, GetRequest, PayloadRequest, UpsertRequest
from api.limits import check_points
from api.openapi import refusals, takes
from api.problems import Problem
from api.service import CollectionDep, Service, ServiceDep, lsn
from raydml.search import Collection, Item

router = APIRouter(prefix="/v1/collections/{name}", tags=["points"])
WRITING = refusals(400, 404, 409, 412, 415, 422, 429, 507)
READING = refusals(400, 404, 412, 415, 422, 429)

Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="names the request: sent again, it gets the same answer and changes nothing; 422 with another body",
    ),
]


@router.post("/points", response_model=Written, responses=WRITING, openapi_extra=takes(UpsertRequest))
async def upsert_points(collection: CollectionDep, service: ServiceDep, request: Request, key: Key = None) -> Response:
    """Insert points, or replace those whose id is there; all of them or none, and on the disk when this answers."""
    body = await bodies.read(request, UpsertRequest)
    check_points(len(body.ids), service.settings)
    vectors = bodies.vectors_of(body.vectors, collection.dimension)
    payloads = None if body.payloads is None else [payload or {} for payload in body.payloads]
    number = await service.tasks.run(
        lambda: collection.upsert(body.ids, vectors, payloads, body.model_digest, request=key)
    )
    return bodies.answer(request, {"lsn": number})


@router.post("/points:delete", response_model=Changed, responses=WRITING, openapi_extra=takes(DeleteRequest))
async def delete_points(collection: CollectionDep, service: ServiceDep, request: Request, key: Key = None) -> Response:
    """Remove points by id, or all that pass a filter."""
    body = await bodies.read(request, DeleteRequest)
    if body.filter == {}:
        raise Problem(422, "invalid-request", "an empty filter would remove every point: delete the collection instead")
    return await _changed(
        service, request, collection, lambda: collection.delete(body.ids, filter=body.filter, request=key)
    )


@router.post("/points:payload", response_model=Changed, responses=WRITING, openapi_extra=takes(PayloadRequest))
async def set_payload(collection: CollectionDep, service: ServiceDep, request: Request, key: Key = None) -> Response:
    """Add fields to points' payloads, or replace them; vectors stay."""
    body = await bodies.read(request, PayloadRequest)
    return await _changed(
        service,
        request,
        collection,
        lambda: collection.set_payload(body.ids, body.payload, merge=body.merge, request=key),
    )


@router.post("/points:get", response_model=Points, responses=READING, openapi_extra=takes(GetRequest))
async def get_points(collection: CollectionDep, service: ServiceDep, request: Request) -> Response:
    """Points by id, in this order; 422 names those that are not there."""
    body = await bodies.read(request, GetRequest)
    check_points(len(body.ids), service.settings)
    items = await service.read(collection, lambda: collection.get(body.ids), body.min_lsn)
    return bodies.answer(request, {"points": _documents(items, body.with_vectors)})


@router.get("/points", response_model=Page, responses=READING)
async def scroll_points(
    collection: CollectionDep,
    service: ServiceDep,
    request: Request,
    after: Annotated[str | None, Query(description="`next` of the page before")] = None,
    limit: Annotated[int, Query(ge=1)] = 100,
    filter: Annotated[str | None, Query(description="a filter as JSON")] = None,
    with_vectors: bool = False,
    min_lsn: Annotated[int | None, Query(ge=0)] = None,
) -> Response:
    """Points in order of insertion, a page at a time."""
    check_points(limit, service.settings)
    start = None if after is None else _point_of(after)
    wanted = None if filter is None else bodies.json_of(filter.encode())
    items = await service.read(collection, lambda: collection.scroll(start, limit, wanted), min_lsn)
    following = _cursor(items[-1]) if len(items) == limit else None
    return bodies.answer(request, {"points": _documents(items, with_vectors), "next": following})


@router.put("/indexes/{field}", status_code=204, responses=WRITING)
async def index_payload(field: str, collection: CollectionDep, service: ServiceDep) -> None:
    """Keep an index of a field of payloads: filters and facets of it need not read payloads."""
    await service.tasks.run(lambda: collection.index_payload(field))


@router.get("/facets/{field}", responses=READING)
async def get_facet(
    field: str,
    collection: CollectionDep,
    service: ServiceDep,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    min_lsn: Annotated[int | None, Query(ge=0)] = None,
) -> Facet:
    """The values of an indexed field with their number of points, the most frequent first."""
    counted = await service.read(collection, lambda: collection.facet(field, limit), min_lsn)
    return Facet(values=[Value(value=value, points=points) for value, points in counted])


async def _changed(service: Service, request: Request, collection: Collection, work: Callable[[], int]) -> Response:
    points, number = await service.tasks.run(lambda: (work(), lsn(collection)))
    return bodies.answer(request, {"points": points, "lsn": number})


def _documents(items: Sequence[Item], with_vectors: bool) -> list[dict[str, Any]]:
    return [
        {"id": item.id, "payload": item.payload, **({"vector": item.vector} if with_vectors else {})} for item in items
    ]


def _cursor(item: Item) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(item.id)).decode()


def _point_of(cursor: str) -> Any:
    try:
        return orjson.loads(base64.urlsafe_b64decode(cursor))
    except (binascii.Error, ValueError) as error:
        raise Problem(422, "invalid-request", "after: give the `next` of the page before, as it was") from error
