"""/v1/collections/{name}/classify, calibrate, verify, identify, duplicates: what the nearest points say of a query."""

from __future__ import annotations

from dataclasses import asdict
from math import nan
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api import bodies, documents
from api.answers import Classes, Duplicates, Identities, Verdicts
from api.asking import prepared
from api.documents import CalibrateRequest, ClassifyRequest, DuplicatesRequest, IdentifyRequest, VerifyRequest
from api.limits import check_points
from api.openapi import refusals, takes
from api.search import documents as hits_of
from api.service import CollectionDep, ServiceDep, check_lsn
from raydml.search import identities, insight

router = APIRouter(prefix="/v1/collections/{name}", tags=["identities"])
ASKING = refusals(400, 404, 409, 412, 413, 415, 422, 429)
CALIBRATIONS = {"pairs": identities.calibrate_pairs, "identify": identities.calibrate_identify}


@router.post("/classify", response_model=Classes, responses=ASKING, openapi_extra=takes(ClassifyRequest))
async def classify(collection: CollectionDep, service: ServiceDep, request: Request) -> Response:
    """The commonest class among each query's nearest points; null where too few agree."""
    body = await bodies.read(request, ClassifyRequest)
    hits = await service.searches.run(await prepared(service, collection, body, score_threshold=body.least_score))
    found = identities.elected(hits, body.field, body.least_share)
    results = [{"label": one.label, "share": one.share, "hits": hits_of([one.hits])[0]} for one in found]
    return bodies.answer(request, {"results": results})


@router.post("/calibrate", response_model=documents.Threshold, responses=ASKING, openapi_extra=takes(CalibrateRequest))
async def calibrate(collection: CollectionDep, service: ServiceDep, request: Request) -> Response:
    """The threshold at which strangers are accepted so seldom, chosen and measured on the collection's own points."""
    body = await bodies.read(request, CalibrateRequest)
    calibration = CALIBRATIONS[body.kind]
    threshold = await service.analyses.run(
        lambda: calibration(collection, body.field, body.false_accept_rate, body.seed)
    )
    return bodies.answer(request, asdict(threshold))


@router.post("/verify", response_model=Verdicts, responses=ASKING, openapi_extra=takes(VerifyRequest))
async def verify(collection: CollectionDep, service: ServiceDep, request: Request) -> Response:
    """Whether the two points of each pair are the same, by the threshold."""
    body = await bodies.read(request, VerifyRequest)
    check_points(2 * len(body.pairs), service.settings)
    threshold = _threshold(body.threshold)
    found = await service.read(collection, lambda: identities.same(collection, body.pairs, threshold), body.min_lsn)
    return bodies.answer(request, {"results": [{"same": same, "score": score} for same, score in found]})


@router.post("/identify", response_model=Identities, responses=ASKING, openapi_extra=takes(IdentifyRequest))
async def identify(collection: CollectionDep, service: ServiceDep, request: Request) -> Response:
    """Who each query is, by the threshold; null for somebody unknown."""
    body = await bodies.read(request, IdentifyRequest)
    threshold = _threshold(body.threshold)
    hits = await service.searches.run(await prepared(service, collection, body, group_by=threshold.field))
    found = identities.recognised(hits, threshold, collection.metric)
    results = [{"identity": one.identity, "score": one.score, "hits": hits_of([one.hits])[0]} for one in found]
    return bodies.answer(request, {"results": results})


@router.post("/duplicates", response_model=Duplicates, responses=ASKING, openapi_extra=takes(DuplicatesRequest))
async def find_duplicates(collection: CollectionDep, service: ServiceDep, request: Request) -> Response:
    """Groups of points that are nearly the same; every point is searched, so this takes its time."""
    body = await bodies.read(request, DuplicatesRequest)

    def groups() -> list[list[Any]]:
        check_lsn(collection, body.min_lsn)
        return insight.duplicates(collection, body.threshold)

    return bodies.answer(request, {"groups": await service.analyses.run(groups)})


def _threshold(given: documents.Threshold) -> identities.Threshold:
    values: dict[str, Any] = {
        "target": nan, "false_accept_rate": nan, "interval": (nan, nan), "impostors": 0, "true_accept_rate": None,
        "genuine": 0,
    }  # fmt: skip
    return identities.Threshold(**{**values, **given.model_dump(exclude_none=True)})
