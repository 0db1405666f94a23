"""/v1/models: keep the models of finished jobs, promote, export and download them."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import Response, StreamingResponse

from api import bodies
from api.access import CallerDep
from api.confined import open_inside
from api.cursors import cursor_of, position_of
from api.documents import Name
from api.job_desk import DeskDep
from api.model_documents import (
    MODEL_ID,
    Alias,
    Model,
    ModelPage,
    PromoteRequest,
    Promotion,
    Promotions,
    RegisterRequest,
)
from api.once import Done, Key
from api.openapi import also, refusals, takes
from api.preconditions import IfNoneMatch
from api.problems import Problem
from api.ranges import file_answer
from api.service import Service, ServiceDep
from api.times import rfc3339
from raydml.jobs.export import pieces, size_of
from raydml.jobs.models import ModelRow

router = APIRouter(prefix="/v1/models", tags=["models"])
ModelId = Annotated[str, Path(alias="model", pattern=MODEL_ID, description="a model's id")]


@router.post(
    "",
    status_code=201,
    response_model=Model,
    responses=refusals(400, 404, 409, 415, 422, 429, 507),
    openapi_extra=takes(RegisterRequest),
)
async def register_model(
    caller: CallerDep, desk: DeskDep, service: ServiceDep, request: Request, key: Key = None
) -> Response:
    """Keep a copy of the model of a finished job or run, with its card and the SHA-256 of every file."""
    body = await bodies.read(request, RegisterRequest)

    copied: list[ModelRow] = []

    def copy() -> None:
        if body.job is not None:
            job = desk.store.get(body.job, caller.project)
            source, run, name = body.job, desk.store.run_folder(body.job), job.name
        else:
            source = name = str(body.run)
            run = service.run_of(caller, source)
        _refuse_links(run)
        copied.append(service.models.copy(caller.project, source, run, body.name or name, caller.name))

    async def prepare() -> None:
        await service.analyses.run(copy)

    def act(_: None) -> Done:
        service.models.keep(copied[0])
        return Done(_shape(copied[0], []), 201, {"Location": f"/v1/models/{copied[0].id}"})

    try:
        return await desk.once.do(request, caller, key, prepare, act)
    except BaseException:
        for row in copied:
            await service.analyses.run(lambda row=row: service.models.forget(row))  # type: ignore[misc]
        raise


@router.get("", responses=refusals(422, 429))
async def list_models(
    caller: CallerDep,
    service: ServiceDep,
    name: Annotated[Name | None, Query()] = None,
    alias: Annotated[Alias | None, Query(description="those that it points to")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before")] = None,
) -> ModelPage:
    """Models, the newest first, a page at a time."""
    asked = ("models", caller.project, name, alias)
    before = position_of(cursor, *asked)

    def read() -> tuple[list[Model], bool]:
        rows = service.models.list(caller.project, name, alias, before, limit + 1)
        aliases = service.models.aliases([row.id for row in rows])
        return [Model(**_shape(row, aliases[row.id])) for row in rows[:limit]], len(rows) > limit

    items, more = await service.tasks.run(read)
    return ModelPage(items=items, next_cursor=cursor_of(items[-1].id, *asked) if more else None)


@router.get("/{model}", response_model=Model, responses=refusals(404, 422, 429))
async def get_model(model: ModelId, caller: CallerDep, service: ServiceDep, request: Request) -> Response:
    """A model, its files, and the aliases that point to it."""
    return bodies.answer(request, await service.tasks.run(lambda: _read(service, model, caller.project)))


@router.post(
    "/{model}/promote",
    response_model=Model,
    responses=refusals(400, 404, 409, 415, 422, 429),
    openapi_extra=takes(PromoteRequest),
)
async def promote_model(model: ModelId, caller: CallerDep, service: ServiceDep, request: Request) -> Response:
    """Point an alias of the model's name to it, at once for everybody; the move stands in the history."""
    body = await bodies.read(request, PromoteRequest)

    def promoted() -> dict[str, Any]:
        service.models.promote(model, caller.project, body.alias, body.expected, caller.name)
        return _read(service, model, caller.project)

    return bodies.answer(request, await service.tasks.run(promoted))


@router.get("/{model}/promotions", responses=refusals(404, 422, 429))
async def list_promotions(model: ModelId, caller: CallerDep, service: ServiceDep) -> Promotions:
    """Where the aliases of the model's name pointed, when and by whom they were moved; the newest first."""
    rows = await service.tasks.run(lambda: service.models.history(model, caller.project))
    moves = [
        Promotion(alias=row.alias, model=row.model_id, before=row.before, caller=row.caller, time=rfc3339(row.time))
        for row in rows
    ]
    return Promotions(items=moves)


@router.get(
    "/{model}/export",
    response_class=Response,
    responses={**refusals(404, 422, 429), **also(200, "application/x-tar")},
)
async def export_model(model: ModelId, caller: CallerDep, service: ServiceDep) -> Response:
    """All files as one tar archive, with their digests in SHA256SUMS; the same bytes each time."""
    row = await service.tasks.run(lambda: service.models.get(model, caller.project))
    headers = {
        "Content-Length": str(size_of(row.id, row.files)),
        "Content-Disposition": f'attachment; filename="{row.id}.tar"',
        "X-Content-Type-Options": "nosniff",
    }
    return StreamingResponse(
        pieces(row.id, service.models.folder(row), row.files), headers=headers, media_type="application/x-tar"
    )


@router.get(
    "/{model}/files/{path:path}",
    response_class=Response,
    responses={**refusals(404, 416, 422, 429), **also(200, "*/*"), **also(206, "*/*"), **also(304)},
)
async def get_model_file(
    model: ModelId,
    path: Annotated[str, Path(max_length=4096)],
    caller: CallerDep,
    service: ServiceDep,
    part: Annotated[str | None, Header(alias="Range", max_length=200, description="bytes=FIRST-LAST")] = None,
    of: Annotated[str | None, Header(alias="If-Range", max_length=200, description="the ETag of other parts")] = None,
    seen: IfNoneMatch = None,
) -> Response:
    """A file of the model, whole or a part of it, with its SHA-256 as `Repr-Digest` and as the ETag."""
    row = await service.tasks.run(lambda: service.models.get(model, caller.project))
    digest = next((file["sha256"] for file in row.files if file["path"] == path), None)
    file = None if digest is None else open_inside(service.models.folder(row), path)
    if file is None:
        raise Problem(404, "no-such-file", f"model {model} has no file of this path: see its files")
    return file_answer(file, bytes.fromhex(str(digest)), path, part, of, seen)


def _refuse_links(run: FilePath) -> None:
    if run.is_symlink() or (run / "model").is_symlink():
        raise Problem(409, "model-elsewhere", "the run is a link to somewhere else: move it here")


def _read(service: Service, model: str, project: str) -> dict[str, Any]:
    row = service.models.get(model, project)
    return _shape(row, service.models.aliases([row.id])[row.id])


def _shape(row: ModelRow, aliases: list[str]) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "source": row.source,
        "sha256": row.sha256,
        "dimension": row.dimension,
        "metrics": row.metrics,
        "aliases": aliases,
        "files": row.files,
        "created_by": row.created_by,
        "created_at": rfc3339(row.created_at),
    }
