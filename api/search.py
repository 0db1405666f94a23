"""/v1/collections/{name}/search: the nearest points of vectors, points, images and texts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from api import bodies
from api.answers import BatchAnswer, SearchAnswer
from api.asking import prepared
from api.documents import BatchRequest, RecommendRequest, SearchRequest
from api.limits import check_k, check_name, check_points, check_queries
from api.openapi import refusals, takes
from api.searches import Search
from api.service import CollectionDep, Service, ServiceDep, collection_of, service_of
from api.store import NAME
from raydml.search import Collection, Hit

router = APIRouter(prefix="/v1/collections/{name}", tags=["search"])
SEARCHING = refusals(400, 404, 409, 412, 415, 422, 429)
OPTIONS = ("score_threshold", "group_by", "with_payload", "with_vectors", "exact")
_SEARCH = re.compile(r"/v1/collections/([^/]+)/search")
BINARY = (bodies.JSON, bodies.MSGPACK, bodies.RAW, bodies.NPY, bodies.IMAGE)


@router.post("/search", response_model=SearchAnswer, responses=SEARCHING, openapi_extra=takes(SearchRequest, *BINARY))
async def search(name: Annotated[str, Path(pattern=NAME)], request: Request) -> Response:
    """The nearest points of each query; vectors or one image may be the whole body, and the query string the rest."""
    check_name(name)
    service = await service_of(request)
    collection = await collection_of(name, request)
    body = await bodies.read(request, SearchRequest, BINARY)
    hits = await service.searches.run(await _prepare(service, collection, body))
    return bodies.answer(request, {"results": documents(hits, body.with_payload, body.with_vectors)})


class Shortcut:
    """The innermost middleware: a search goes straight to its function, which checks what it is given itself.

    FastAPI's way there, through routes, dependencies and exit stacks, takes a sixth of a request's CPU time.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.route = router.routes[0]  # by whose path requests are counted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; errors pass on, to the envelope."""
        found = _SEARCH.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if found is None:
            await self.app(scope, receive, send)
            return
        scope["route"] = self.route
        response = await search(found[1], Request(scope, receive, send))
        await response(scope, receive, send)


@router.post("/search:batch", response_model=BatchAnswer, responses=SEARCHING, openapi_extra=takes(BatchRequest))
async def search_batch(collection: CollectionDep, service: ServiceDep, request: Request) -> Response:
    """Several searches at once, each with its own k and filter; one that is refused refuses all."""
    body = await bodies.read(request, BatchRequest)
    check_queries(len(body.searches), service.settings)
    searches = [await _prepare(service, collection, each) for each in body.searches]
    check_queries(sum(map(len, searches)), service.settings)
    found = await asyncio.gather(*(service.searches.run(each) for each in searches))
    answers = [
        {"results": documents(hits, each.with_payload, each.with_vectors)}
        for hits, each in zip(found, body.searches, strict=True)
    ]
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
    return bodies.answer(request, {"results": documents([hits])})


async def _prepare(service: Service, collection: Collection, body: SearchRequest) -> Search:
    return await prepared(service, collection, body, **{name: getattr(body, name) for name in OPTIONS})


def documents(
    found: Sequence[Sequence[Hit]], with_payload: bool = True, with_vectors: bool = False
) -> list[list[dict[str, Any]]]:
    """Hits as they are answered."""
    return [[_document(hit, with_payload, with_vectors) for hit in hits] for hits in found]


def _document(hit: Hit, with_payload: bool, with_vectors: bool) -> dict[str, Any]:
    document: dict[str, Any] = {"id": hit.id, "score": hit.score}
    if with_payload:
        document["payload"] = hit.payload
    if with_vectors:
        document["vector"] = hit.vector
    return document
