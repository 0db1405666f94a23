"""/v1/jobs: accept, plan, list, read and change jobs, and fork new ones from their checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api import bodies
from api.access import CallerDep
from api.job_desk import DeskDep, JobDep
from api.job_documents import CreateJobRequest, ForkRequest, Job, JobPage, PatchJobRequest, PlanRequest
from api.job_requests import ChangingDep, ListingDep, Making, MakingDep, made, shown
from api.once import Done, Key
from api.openapi import refusals, takes
from api.problems import Problem
from api.specs import wrong_spec
from raydml.errors import CheckpointError, SpecError
from raydml.files import remove_folder
from raydml.jobs import records
from raydml.jobs.ids import new_id
from raydml.jobs.store import forked
from raydml.spec import JobSpec
from raydml.training.forks import copy_checkpoint

router = APIRouter(prefix="/v1", tags=["jobs"])


@router.post(
    "/jobs",
    status_code=201,
    response_model=Job,
    responses=refusals(400, 409, 415, 422, 429, 507),
    openapi_extra=takes(CreateJobRequest),
)
async def create_job(making: MakingDep) -> Response:
    """Accept a job: its spec, its data and its model have been looked at, and it is kept, when this answers."""
    return await making.make("job")


@router.post("/jobs:plan", responses=refusals(400, 409, 415, 422, 429, 507), openapi_extra=takes(PlanRequest))
async def plan_job(desk: DeskDep, caller: CallerDep, request: Request) -> dict[str, Any]:
    """What a spec would do with its data, and what it needs; nothing is kept."""
    body = await bodies.read(request, PlanRequest)
    return await desk.checker.plan(await Making(desk, caller, request, None).spec("job", body.spec))


@router.get("/jobs", response_model=JobPage, responses=refusals(422, 429))
async def list_jobs(listing: ListingDep) -> Response:
    """Jobs, the newest first, a page at a time; sweeps have a list of their own."""
    return await listing.page("job")


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
async def patch_job(changing: ChangingDep) -> Response:
    """Change labels, priority and the most workers, by a JSON merge patch."""
    return await changing.change(PatchJobRequest)


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
        return forked(found, changes)
    except SpecError as error:
        raise wrong_spec(error) from error


def _copied(parent: Path, child: Path, step: int | None, spec: JobSpec) -> int:
    """The checkpoint in the folder of a job that is still to be made. Raises Problem 409 where it is not there."""
    try:
        return copy_checkpoint(parent, child, step, spec.digest())
    except CheckpointError as error:
        raise Problem(409, "no-such-checkpoint", error.message) from error
