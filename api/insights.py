"""/v1/collections/{name}/explain, hard-negatives: why a query finds what it finds, and which items are confused."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api import bodies
from api.answers import Explanations
from api.asking import asked
from api.documents import ExplainRequest, NegativesRequest
from api.limits import check_k
from api.openapi import refusals, takes
from api.search import documents as hits_of
from api.service import CollectionDep, ServiceDep, check_lsn
from raydml.files import scratch_folder
from raydml.search import insight

router = APIRouter(prefix="/v1/collections/{name}", tags=["insights"])
ASKING = refusals(400, 404, 409, 412, 415, 422, 429)
LINES = "application/x-ndjson"


@router.post("/explain", response_model=Explanations, responses=ASKING, openapi_extra=takes(ExplainRequest))
async def explain(collection: CollectionDep, service: ServiceDep, request: Request) -> Response:
    """The nearest point of each identity, how far the first is ahead of the second, and which of them are hubs."""
    body = await bodies.read(request, ExplainRequest)
    query = {**await asked(service, collection, body), "filter": body.filter}
    found = await service.analyses.run(lambda: insight.explain(collection, body.field, body.k, body.seed, **query))
    results = [{"margin": one.margin, "hubness": one.hubness, "hits": hits_of([one.hits])[0]} for one in found]
    return bodies.answer(request, {"results": results})


@router.post(
    "/hard-negatives",
    responses={**ASKING, 200: {"content": {LINES: {}}, "description": "a line for each point"}},
    openapi_extra=takes(NegativesRequest),
)
async def export_hard_negatives(collection: CollectionDep, service: ServiceDep, request: Request) -> Response:
    """The nearest points of other identities than each point's own: a file for `batch.sampling.negatives` of a job."""
    body = await bodies.read(request, NegativesRequest)
    check_k(body.k, service.settings)

    def exported() -> bytes:
        check_lsn(collection, body.min_lsn)
        with scratch_folder("raydml-negatives-") as folder:
            insight.export_hard_negatives(collection, body.field, Path(folder) / "lines", body.k)
            return (Path(folder) / "lines").read_bytes()

    return Response(await service.analyses.run(exported), media_type=LINES)
