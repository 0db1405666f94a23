"""/v1/collections/{name}/search: the nearest points of vectors, points, images and texts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api import bodies, images
from api.documents import BatchAnswer, BatchRequest, RecommendRequest, SearchAnswer, SearchRequest
from api.limits import check_k, check_points, check_queries, check_search
from api.openapi import refusals, takes
from api.searches import Hits, Search
from api.service import CollectionDep, Service, ServiceDep, check_lsn
from raydml.search import Collection, Hit
from raydml.search.embedder import check_digest
from raydml.search.items import Array

router = APIRouter(prefix="/v1/collections/{name}", tags=["search"])
SEARCHING = refusals(400, 404, 409, 412, 415, 422, 429)
BINARY = (bodies.JSON, bodies.MSGPACK, bodies.RAW, bodies.NPY, bodies.IMAGE)


@router.post("/search", response_model=SearchAnswer, responses=SEARCHING, openapi_extra=takes(SearchRequest, *BINARY))
async def search(collection: CollectionDep, service: ServiceDep, request: Request) -> Response:
    """The nearest points of each query; vectors or one image may be the whole body, and the query string the rest."""
    body = await bodies.read(request, SearchRequest, BINARY)
    hits = await _hits(service, collection, body)
    return bodies.answer(request, {"results": _documents(hits, body)})


@router.post("/search:batch", response_model=BatchAnswer, responses=SEARCHING, openapi_extra=takes(BatchRequest))
async def search_batch(collection: CollectionDep, service: ServiceDep, request: Request) -> Response:
    """Several searches at once, each with its own k and filter; one that is refused refuses all."""
    body = await bodies.read(request, BatchRequest)
    check_queries(len(body.searches), service.settings)
    prepared = [await _prepare(service, collection, each) for each in body.searches]
    check_queries(sum(map(len, prepared)), service.settings)
    found = await asyncio.gather(*(service.searches.run(each) for each in prepared))
    answers = [{"results": _documents(hits, each)} for hits, each in zip(found, body.searches, strict=True)]
    return bodies.answer(request, {"answers": answers})


@router.post("/recommend", response_model=SearchAnswer, responses=SEARCHING, openapi_extra=takes(RecommendRequest))
async def recommend(collection: CollectionDep, service: ServiceDep, request: Request) -> Response:
    """Points like some and unlike others, all given by id; none of them is a hit."""
    body = await bodies.read(request, RecommendRequest)
    check_k(body.k, service.settings)
    check_points(len(body.positives) + len(body.negatives), service.settings)
    hits = await service.read(
        collection, lambda: collection.recommend(body.positives, body.negatives, body.k, body.filter), body.min_lsn
    )
    return bodies.answer(request, {"results": _documents([hits], SearchRequest())})


async def _hits(service: Service, collection: Collection, body: SearchRequest) -> Hits:
    return await service.searches.run(await _prepare(service, collection, body))


async def _prepare(service: Service, collection: Collection, body: SearchRequest) -> Search:
    """Everything that can refuse this search alone, before it is searched with others."""
    check_search(body, service.settings)
    check_digest(body.model_digest, collection.model_digest)
    if body.min_lsn is not None:
        await service.tasks.run(lambda: check_lsn(collection, body.min_lsn))
    options = {
        "score_threshold": body.score_threshold, "group_by": body.group_by,
        "with_payload": body.with_payload, "with_vectors": body.with_vectors,
    }  # fmt: skip
    queries = None if body.ids is not None else await _queries(service, collection, body)
    if queries is not None:
        check_queries(len(queries), service.settings)
    return Search(collection, queries, body.ids, body.k, body.filter, tuple(options.items()))


async def _queries(service: Service, collection: Collection, body: SearchRequest) -> Array:
    """Checked vectors (n, dimension) of what is not given by id."""
    if body.vectors is not None:
        return collection.query_vectors(bodies.vectors_of(body.vectors, collection.dimension))
    service.store.check_model(collection)

    def embedded() -> Array:
        if body.texts is not None:
            return collection.query_vectors(texts=body.texts)
        return collection.query_vectors(images=images.decoded(body.images or [], service.settings))

    return await service.embedding.run(embedded)


def _documents(found: Sequence[Sequence[Hit]], body: SearchRequest) -> list[list[dict[str, Any]]]:
    return [[_document(hit, body) for hit in hits] for hits in found]


def _document(hit: Hit, body: SearchRequest) -> dict[str, Any]:
    document: dict[str, Any] = {"id": hit.id, "score": hit.score}
    if body.with_payload:
        document["payload"] = hit.payload
    if body.with_vectors:
        document["vector"] = hit.vector
    return document
