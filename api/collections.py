"""/v1/collections: make, list, describe and remove collections."""

from __future__ import annotations

from bisect import bisect_right
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response

from api import bodies
from api.answers import Compacted, Description, Listing, Stats
from api.documents import CreateRequest, NewCollection
from api.openapi import refusals, takes
from api.problems import Problem
from api.service import CollectionDep, Service, ServiceDep, StoreDep, lsn
from api.store import NAME
from raydml.search import Collection

router = APIRouter(prefix="/v1/collections", tags=["collections"])
Named = Annotated[str, Path(pattern=NAME)]


@router.get("", responses=refusals(422, 429))
async def list_collections(
    service: ServiceDep, store: StoreDep, after: str | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> Listing:
    """Names of the collections, in order, a page at a time."""
    names = await service.tasks.run(store.names)
    start = 0 if after is None else bisect_right(names, after)
    page = names[start : start + limit]
    return Listing(collections=page, next=page[-1] if start + limit < len(names) else None)


@router.put(
    "/{name}",
    response_model=Description,
    responses={**refusals(400, 404, 409, 415, 422, 429, 507), 201: {"model": Description, "description": "Made"}},
    openapi_extra=takes(CreateRequest),
)
async def create_collection(name: Named, service: ServiceDep, store: StoreDep, request: Request) -> Response:
    """Make a collection; 200 where it is there and agrees, 409 where it differs."""
    body = await bodies.read(request, CreateRequest)
    made = await service.tasks.run(lambda: store.create(name, body.dimension, body.metric, body.model_digest, body.run))
    described = await describe(service, await service.collection(store, name))
    return bodies.answer(request, described.model_dump(), 201 if made else 200)


@router.get("/{name}", responses=refusals(404, 422, 429))
async def get_collection(name: Named, collection: CollectionDep, service: ServiceDep) -> Description:
    """Describe a collection, or the one that an alias points to."""
    return await describe(service, collection)


@router.get("/{name}/stats", responses=refusals(404, 422, 429))
async def get_stats(collection: CollectionDep, service: ServiceDep) -> Stats:
    """What a collection consists of, and how well its approximate indexes do."""
    return Stats(**await service.tasks.run(collection.stats))


@router.delete("/{name}", status_code=204, responses=refusals(404, 409, 422, 429))
async def delete_collection(name: Named, service: ServiceDep, store: StoreDep) -> None:
    """Remove a collection with everything in it; 409 while an alias points to it."""
    await service.tasks.run(lambda: store.delete(name))


@router.post("/{name}/compact", responses=refusals(404, 422, 429, 507))
async def compact_collection(collection: CollectionDep, service: ServiceDep) -> Compacted:
    """Merge segments and drop dead rows, in a process of its own; others read and write meanwhile."""
    report = await service.analyses.run(collection.compact)
    return Compacted(**report) if report else Compacted(segments=0, rows=0, kept=0)


@router.post(
    "",
    status_code=201,
    response_model=Description,
    responses=refusals(400, 404, 409, 415, 422, 429, 507),
    openapi_extra=takes(NewCollection),
)
async def add_collection(service: ServiceDep, store: StoreDep, request: Request) -> Response:
    """Make a collection; 409 where there is one of this name. PUT makes it or finds it there."""
    body = await bodies.read(request, NewCollection)
    given = body.dimension, body.metric, body.model_digest, body.run
    if not await service.tasks.run(lambda: store.create(body.name, *given)):
        raise Problem(409, "collection-exists", f"collection {body.name} exists: take another name, or PUT")
    described = await describe(service, await service.collection(store, body.name))
    return bodies.answer(request, described.model_dump(), 201)


async def describe(service: Service, collection: Collection) -> Description:
    """Under its own name, where `name` is an alias."""
    points, number = await service.tasks.run(lambda: (collection.count(), lsn(collection)))
    return Description(
        name=collection.path.name,
        dimension=collection.dimension,
        metric=collection.metric,
        model_digest=collection.model_digest,
        points=points,
        lsn=number,
    )
