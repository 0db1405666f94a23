"""/v1/jobs: accept, plan, list, read and change jobs, and fork new ones from their checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from api import bodies
from api.access import CallerDep
from api.cursors import cursor_of, position_of
from api.documents import Name
from api.job_desk import DeskDep, JobDep, JobId
from api.job_documents import (
    LABEL_KEY,
    CreateJobRequest,
    ForkRequest,
    Job,
    JobPage,
    PatchJobRequest,
    PlanRequest,
)
from api.job_shapes import job_document
from api.once import Done, Key
from api.openapi import refusals, takes
from api.preconditions import IfMatch, check_match, etag
from api.problems import UNPROCESSABLE, Problem
from api.specs import spec_of, wrong_spec
from raydml.errors import CheckpointError, SpecError
from raydml.files import remove_folder
from raydml.jobs import records
from raydml.jobs.ids import new_id
from raydml.jobs.merging import merge_patch
from raydml.jobs.states import State
from raydml.spec import JobSpec
from raydml.specfile import parse_spec
from raydml.training.forks import copy_checkpoint

router = APIRouter(prefix="/v1", tags=["jobs"])
LabelFilter = Annotated[str, Query(pattern=rf"{LABEL_KEY[:-1]}:[^\x00-\x1f\x7f]{{0,200}}$")]


@router.post(
    "/jobs",
    status_code=201,
    response_model=Job,
    responses=refusals(400, 409, 415, 422, 429, 507),
    openapi_extra=takes(CreateJobRequest),
)
async def create_job(desk: DeskDep, caller: CallerDep, request: Request, key: Key = None) -> Response:
    """Accept a job: its spec, its data and its model have been looked at, and it is kept, when this answers."""
    body = await bodies.read(request, CreateJobRequest)

    async def prepare() -> JobSpec:
        content = await request.body()
        spec = await desk.tasks.run(lambda: desk.admitted(spec_of(body.spec, content), caller))
        await desk.checker.check(spec, desk.collections_of(caller))
        return spec

    def act(spec: JobSpec) -> Done:
        job = desk.store.create(
            desk.accept(spec, caller),
            project=caller.project,
            name=body.name,
            labels=body.labels,
            priority=body.priority,
            deadline_seconds=body.deadline_seconds,
            by=caller.name,
        )
        return made(job)

    return await desk.once.do(request, caller, key, prepare, act)


@router.post("/jobs:plan", responses=refusals(400, 409, 415, 422, 429, 507), openapi_extra=takes(PlanRequest))
async def plan_job(desk: DeskDep, caller: CallerDep, request: Request) -> dict[str, Any]:
    """What a spec would do with its data, and what it needs; nothing is kept."""
    body = await bodies.read(request, PlanRequest)
    content = await request.body()
    return await desk.checker.plan(await desk.tasks.run(lambda: desk.admitted(spec_of(body.spec, content), caller)))


@router.get("/jobs", response_model=JobPage, responses=refusals(422, 429))
async def list_jobs(
    desk: DeskDep,
    caller: CallerDep,
    request: Request,
    state: Annotated[list[State], Query(description="any of these")] = [],  # noqa: B006
    label: Annotated[list[LabelFilter], Query(max_length=16, description="all of these, each key:value")] = [],  # noqa: B006
    name: Annotated[Name | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before")] = None,
) -> Response:
    """Jobs, the newest first, a page at a time."""
    labels = dict(each.split(":", 1) for each in label)
    if len(labels) < len(set(label)):
        raise Problem(UNPROCESSABLE, "invalid-request", "label: a job has one value of a label: name each key once")
    asked = (caller.project, sorted(state), sorted(labels.items()), name)
    after = position_of(cursor, *asked)
    page = await desk.tasks.run(
        lambda: desk.store.list(
            project=caller.project, states=state, labels=labels, name=name, after=after, limit=limit
        )
    )
    following = None if page.next is None else cursor_of(page.next, *asked)
    return bodies.answer(request, {"items": list(map(job_document, page.items)), "next_cursor": following})


@router.get("/jobs/{job}", response_model=Job, responses=refusals(404, 422, 429))
async def get_job(found: JobDep, request: Request) -> Response:
    """A job as it is now."""
    return shown(request, found)


@router.patch(
    "/jobs/{job}",
    response_model=Job,
    responses=refusals(400, 404, 409, 412, 415, 422, 429),
    openapi_extra=takes(PatchJobRequest, bodies.MERGE, bodies.JSON),
)
async def patch_job(job: JobId, desk: DeskDep, caller: CallerDep, request: Request, seen: IfMatch = None) -> Response:
    """Change labels, priority and the most workers, by a JSON merge patch."""
    body = await bodies.read(request, PatchJobRequest, (bodies.MERGE, bodies.JSON))
    named = body.model_fields_set

    def change() -> records.Job:
        with desk.database.transaction():
            now = desk.store.get(job, caller.project)
            check_match(seen, now.version)
            labels: dict[str, str | None] | None = None
            if "labels" in named:
                labels = dict.fromkeys(now.labels) if body.labels is None else body.labels
            most = now.spec["parallel"]["workers"]["max"] if body.max_workers is None else body.max_workers
            return desk.store.patch(
                job,
                project=caller.project,
                labels=labels,
                priority=(body.priority or 0) if "priority" in named else None,
                max_workers=most if "max_workers" in named else None,
                by=caller.name,
            )

    return shown(request, await desk.tasks.run(change))


@router.post(
    "/jobs/{job}/fork",
    status_code=201,
    response_model=Job,
    responses=refusals(400, 404, 409, 415, 422, 429, 507),
    openapi_extra=takes(ForkRequest),
)
async def fork_job(found: JobDep, desk: DeskDep, caller: CallerDep, request: Request, key: Key = None) -> Response:
    """A new job that goes on from a checkpoint of this one, with changes of its spec."""
    body = await bodies.read(request, ForkRequest)
    id = new_id("job")
    folder = desk.store.run_folder(id)

    async def prepare() -> tuple[JobSpec, int]:
        spec = await desk.tasks.run(lambda: desk.admitted(_patched(found, body.changes), caller))
        await desk.checker.check(spec, desk.collections_of(caller))
        return spec, await desk.files.run(lambda: _copied(desk.store.run_folder(found.id), folder, body.step, spec))

    def act(copy: tuple[JobSpec, int]) -> Done:
        spec, step = copy
        job = desk.store.create(
            desk.accept(spec, caller),
            project=caller.project,
            name=body.name,
            labels=found.labels if body.labels is None else body.labels,
            priority=found.priority,
            by=caller.name,
            parent=(found.id, step),
            id=id,
        )
        return made(job)

    try:
        return await desk.once.do(request, caller, key, prepare, act)
    except BaseException:
        if folder.exists():
            await desk.files.run(lambda: remove_folder(folder))
        raise


def _patched(found: records.Job, changes: dict[str, Any]) -> JobSpec:
    try:
        return parse_spec(merge_patch(found.spec, changes))
    except SpecError as error:
        raise wrong_spec(error) from error


def _copied(parent: Path, child: Path, step: int | None, spec: JobSpec) -> int:
    """The checkpoint in the folder of a job that is still to be made. Raises Problem 409 where it is not there."""
    try:
        return copy_checkpoint(parent, child, step, spec.digest())
    except CheckpointError as error:
        raise Problem(409, "no-such-checkpoint", error.message) from error


def made(job: records.Job) -> Done:
    """The answer to who made a job."""
    return Done(job_document(job), 201, {"Location": f"/v1/jobs/{job.id}", "ETag": etag(job.version)})


def shown(request: Request, job: records.Job) -> Response:
    """The answer to who asked for a job, or changed it."""
    answer = bodies.answer(request, job_document(job))
    answer.headers["ETag"] = etag(job.version)
    return answer
