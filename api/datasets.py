"""/v1/datasets: upload data in parts that survive a crash, or name what lies under a root; see what is in it."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response

from api import bodies
from api.access import CallerDep
from api.cursors import cursor_of, position_of
from api.dataset_desk import DatasetsDep
from api.dataset_documents import (
    DATASET_ID,
    DIGEST,
    CreateDatasetRequest,
    Dataset,
    DatasetPage,
    DatasetWithParts,
    Report,
    ValidateRequest,
)
from api.job_desk import DeskDep
from api.once import Done, Key
from api.openapi import refusals, takes
from api.problems import UNPROCESSABLE, UNSUPPORTED, Problem
from api.service import ServiceDep
from api.times import rfc3339
from raydml.errors import SpecError
from raydml.jobs.datasets import DatasetRow
from raydml.jobs.roots import DATASET

router = APIRouter(prefix="/v1", tags=["datasets"])
DatasetId = Annotated[str, Path(alias="dataset", pattern=DATASET_ID, description="a data set's id")]
PartDigest = Annotated[str, Query(pattern=DIGEST, description="SHA-256 of the part, in hexadecimal")]


@router.post(
    "/datasets",
    status_code=201,
    response_model=Dataset,
    responses=refusals(400, 409, 415, 422, 429, 507),
    openapi_extra=takes(CreateDatasetRequest),
)
async def create_dataset(
    desk: DatasetsDep, jobs: DeskDep, caller: CallerDep, service: ServiceDep, request: Request, key: Key = None
) -> Response:
    """Begin an upload, whose parts come next; or check what lies at a path under one of the server's roots."""
    body = await bodies.read(request, CreateDatasetRequest)

    async def prepare() -> FilePath | None:
        if body.path is None:
            return None
        if body.path.startswith(DATASET):
            raise Problem(UNPROCESSABLE, "invalid-request", "path: this is a data set already")
        data = {"data": {"kind": "manifest", "path": body.path}}
        return FilePath((await service.tasks.run(lambda: desk.confined(data, caller)))["data"]["path"])

    def act(path: FilePath | None) -> Done:
        if path is not None:
            row = desk.store.under_root(caller.project, body.name, path, caller.name)
        else:
            assert body.kind is not None and body.size is not None and body.sha256 is not None
            row = desk.store.upload(caller.project, body.name, body.kind, body.size, body.sha256, caller.name)
        return Done(shape(row), 201, {"Location": f"/v1/datasets/{row.id}"})

    answer = await jobs.once.do(request, caller, key, prepare, act)
    if body.path is not None:
        desk.check_later(answer.headers["Location"].rpartition("/")[2])
    return answer


@router.get("/datasets", responses=refusals(422, 429))
async def list_datasets(
    desk: DatasetsDep,
    caller: CallerDep,
    service: ServiceDep,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before")] = None,
) -> DatasetPage:
    """Data sets, the newest first, a page at a time."""
    before = position_of(cursor, "datasets", caller.project)
    rows = await service.tasks.run(lambda: desk.store.list(caller.project, before, limit + 1))
    following = cursor_of(rows[limit - 1].id, "datasets", caller.project) if len(rows) > limit else None
    return DatasetPage(items=[Dataset(**shape(row)) for row in rows[:limit]], next_cursor=following)


@router.get("/datasets/{dataset}", responses=refusals(404, 422, 429))
async def get_dataset(
    dataset: DatasetId, desk: DatasetsDep, caller: CallerDep, service: ServiceDep
) -> DatasetWithParts:
    """A data set, and which parts of its upload are there: after a crash, send the others."""

    def read() -> tuple[DatasetRow, dict[int, str]]:
        row = desk.store.get(dataset, caller.project)
        unfinished = row.state in ("uploading", "failed")
        return row, desk.store.parts(dataset, caller.project) if unfinished else {}

    row, parts = await service.tasks.run(read)
    return DatasetWithParts(
        **shape(row), parts=[{"number": number, "sha256": digest} for number, digest in parts.items()]
    )


@router.put(
    "/datasets/{dataset}/parts/{number}",
    status_code=204,
    responses=refusals(404, 409, 415, 422, 429, 507),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {bodies.RAW: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def put_part(
    dataset: DatasetId,
    number: Annotated[int, Path(ge=0, lt=1 << 31, description="from 0")],
    sha256: PartDigest,
    desk: DatasetsDep,
    caller: CallerDep,
    service: ServiceDep,
    request: Request,
) -> None:
    """Send one part; it is on the disk when this answers, and may be sent again."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != bodies.RAW:
        raise Problem(UNSUPPORTED, "unsupported-content", f"the body of a part is its bytes: send {bodies.RAW}")
    content = await request.body()
    await service.tasks.run(lambda: desk.store.put_part(dataset, caller.project, number, content, sha256))


@router.post(
    "/datasets/{dataset}/complete",
    status_code=202,
    response_model=Dataset,
    responses=refusals(404, 409, 422, 429),
)
async def complete_dataset(
    dataset: DatasetId, desk: DatasetsDep, caller: CallerDep, service: ServiceDep, request: Request
) -> Response:
    """All parts were sent: check the whole, unpack it and look at every item; ready or failed, once that is done."""
    row = await service.tasks.run(lambda: desk.store.complete(dataset, caller.project))
    if row.state == "checking":
        desk.check_later(dataset)
    return bodies.answer(request, shape(row), 202)


@router.delete("/datasets/{dataset}", status_code=204, responses=refusals(404, 409, 422, 429))
async def delete_dataset(dataset: DatasetId, desk: DatasetsDep, caller: CallerDep, service: ServiceDep) -> None:
    """Remove a data set and its files, those under a root excepted; 409 while a job that is not over uses it."""
    await service.tasks.run(lambda: desk.store.delete(dataset, caller.project))


@router.post(
    "/datasets:validate",
    response_model=Report,
    responses=refusals(400, 404, 409, 415, 422, 429),
    openapi_extra=takes(ValidateRequest),
)
async def validate_dataset(desk: DatasetsDep, caller: CallerDep, service: ServiceDep, request: Request) -> Response:
    """What a job with this `data` would find: classes, items, problems. Everything is read; nothing is kept."""
    body = await bodies.read(request, ValidateRequest)
    if not isinstance(body.data.get("path"), str):
        raise Problem(UNPROCESSABLE, "invalid-request", "data.path: name a folder or file under a root, or dataset:ID")
    try:
        found = (await service.tasks.run(lambda: desk.confined({"data": body.data}, caller)))["data"]
    except SpecError as error:
        raise Problem(UNPROCESSABLE, "spec-error", error.message) from error
    report = await desk.validate(FilePath(found["path"]), found)
    return bodies.answer(request, {name: value for name, value in report.items() if name != "path"})


def shape(row: DatasetRow) -> dict[str, Any]:
    """A data set as it is answered; where it lies is not said."""
    return {
        "id": row.id,
        "name": row.name,
        "kind": row.kind,
        "state": row.state,
        "size": row.size,
        "sha256": row.sha256,
        "part_bytes": row.part_bytes,
        "num_parts": row.num_parts,
        "report": row.report,
        "problem": row.problem,
        "created_by": row.created_by,
        "created_at": rfc3339(row.created_at),
        "updated_at": rfc3339(row.updated_at),
    }
