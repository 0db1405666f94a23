"""/v1/collections/{name}/shadows: a new model's collection of the same points, compared and put in its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response

from api import bodies, images
from api.aliases import answer_of, checked
from api.answers import AliasesAnswer, Compared, Filled
from api.documents import FillRequest, ReplaceRequest, ReportRequest
from api.limits import check_k, check_points, check_queries
from api.openapi import refusals, takes
from api.problems import Problem
from api.service import CollectionDep, Service, ServiceDep, StoreDep
from api.store import NAME, check_model
from raydml.search import Collection, Item, shadow
from raydml.search.aliases import Generation

router = APIRouter(prefix="/v1/collections/{name}/shadows/{shadow_name}", tags=["shadows"])
Shadow = Annotated[str, Path(pattern=NAME)]
SHARED = ("projects", "runs", "studies", "uploads")  # folders of the server, which is the default project's, of others
ASKING = refusals(400, 404, 409, 415, 422, 429, 507)


@router.put("", response_model=Filled, responses=ASKING, openapi_extra=takes(FillRequest))
async def fill_shadow(
    shadow_name: Shadow, collection: CollectionDep, service: ServiceDep, store: StoreDep, request: Request
) -> Response:
    """Make the collection of a run's model and embed the points that it lacks, `limit` a request, until `complete`."""
    body = await bodies.read(request, FillRequest)
    check_points(body.limit, service.settings)
    _check_other(shadow_name, collection)
    inputs = _inputs(service, store.home, body)

    def fill() -> dict[str, Any]:
        store.create(shadow_name, None, collection.metric, None, body.run)
        other = store.get(shadow_name)
        check_model(other, service.settings.home)
        embedded = shadow.fill(collection, other, inputs, body.limit)
        return {"embedded": embedded, "complete": embedded < body.limit, "points": other.count()}

    return bodies.answer(request, await service.analyses.run(fill))


@router.post("/report", response_model=Compared, responses=ASKING, openapi_extra=takes(ReportRequest))
async def report_shadow(
    shadow_name: Shadow, collection: CollectionDep, service: ServiceDep, store: StoreDep, request: Request
) -> Response:
    """Both collections searched for the same points: recall, thresholds, and how many neighbours would be others."""
    body = await bodies.read(request, ReportRequest)
    check_k(body.k, service.settings)
    check_queries(body.queries, service.settings)
    _check_other(shadow_name, collection)
    other = await service.collection(store, shadow_name)
    given = body.model_dump()
    compared = await service.analyses.run(lambda: shadow.compare(collection, other, **given))
    return bodies.answer(request, asdict(compared))


@router.post("/switch", response_model=AliasesAnswer, responses=ASKING, openapi_extra=takes(ReplaceRequest))
async def switch_to_shadow(
    shadow_name: Shadow, collection: CollectionDep, service: ServiceDep, store: StoreDep, request: Request
) -> Response:
    """Point an alias of the collection to its shadow; `/v1/aliases:rollback` takes it back."""
    body = await bodies.read(request, ReplaceRequest)
    name = collection.path.name

    def switch() -> Generation:
        now = store.aliases.current()
        if now.collections.get(body.alias) != name:
            target = now.collections.get(body.alias)
            raise Problem(409, "aliases-changed", f"the alias {body.alias} points to {target}, not to {name}")
        return checked(lambda: store.aliases.switch({body.alias: shadow_name}, now.number))

    return bodies.answer(request, answer_of(await service.tasks.run(switch)).model_dump())


def _check_other(shadow_name: str, collection: Collection) -> None:
    if shadow_name == collection.path.name:
        raise Problem(422, "invalid-request", f"{shadow_name} is the collection itself: give its shadow another name")


def _inputs(service: Service, home: FilePath, body: FillRequest) -> Callable[[Item], Any]:
    """What a point's payload gives to the model. Raises Problem 422 with the point's id."""
    settings = service.settings

    def value(item: Item) -> str:
        given = item.payload.get(body.field)
        if not isinstance(given, str):
            raise Problem(422, "no-input", f"point {item.id!r} has no text in the field {body.field!r}: {given!r}")
        return given

    def image(item: Item) -> Any:
        path = (home / value(item)).resolve()
        shared = any(path.is_relative_to(home / name) for name in SHARED)
        if not path.is_relative_to(home) or shared or not path.is_file():
            raise Problem(422, "no-input", f"point {item.id!r}: no file {value(item)!r} is in the project's folder")
        if path.stat().st_size > settings.max_image_bytes:
            raise Problem(422, "no-input", f"point {item.id!r}: {value(item)!r} is larger than an image may be")
        return images.decoded([path.read_bytes()], settings)[0]

    return {"text": value, "image": image}[body.kind]
