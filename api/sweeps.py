"""/v1/sweeps: searches over fields of a spec. A sweep is a job, so that what is not here is under /v1/jobs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from api import bodies
from api.access import CallerDep
from api.job_desk import DeskDep, JobDep
from api.job_documents import CreateJobRequest, EventPage, LogPage, PatchSweepRequest, PlanRequest
from api.job_requests import ChangingDep, ListingDep, Making, MakingDep, shown
from api.job_source import StreamKey
from api.job_streams import STREAMING, AttemptNumber, WantedDep
from api.job_verbs import ASKING, AskingDep
from api.openapi import refusals, takes
from api.sweep_documents import Sweep, SweepPage, Trials
from raydml.errors import JobNotFound
from raydml.jobs.sweeping import leaderboard, study_plan

MAKING = refusals(400, 409, 415, 422, 429, 507)


async def _is_sweep(found: JobDep) -> None:
    """Raises JobNotFound for jobs that search nothing."""
    if found.kind != "sweep":
        raise JobNotFound(f"{found.id} is no sweep: it is at /v1/jobs/{found.id}")


router = APIRouter(tags=["sweeps"])
one = APIRouter(prefix="/v1/sweeps/{job}", dependencies=[Depends(_is_sweep)])


@router.post(
    "/v1/sweeps", status_code=201, response_model=Sweep, responses=MAKING, openapi_extra=takes(CreateJobRequest)
)
async def create_sweep(making: MakingDep) -> Response:
    """Accept a sweep: its space, its data and the models at its corners have been looked at when this answers."""
    return await making.make("sweep")


@router.post("/v1/sweeps:plan", responses=MAKING, openapi_extra=takes(PlanRequest))
async def plan_sweep(desk: DeskDep, caller: CallerDep, request: Request) -> dict[str, Any]:
    """What a study would train, and what a trial of it takes; nothing is kept."""
    body = await bodies.read(request, PlanRequest)
    spec = await Making(desk, caller, request, None).spec("sweep", body.spec)
    await desk.checker.check(spec, desk.collections_of(caller))
    return {"study": await desk.tasks.run(lambda: study_plan(spec)), **await desk.checker.plan(spec)}


@router.get("/v1/sweeps", response_model=SweepPage, responses=refusals(422, 429))
async def list_sweeps(listing: ListingDep) -> Response:
    """Sweeps, the newest first, a page at a time."""
    return await listing.page("sweep")


@one.get("", response_model=Sweep, responses=refusals(404, 422, 429))
async def get_sweep(found: JobDep, request: Request) -> Response:
    """A sweep as it is now."""
    return shown(request, found)


@one.patch(
    "",
    response_model=Sweep,
    responses=refusals(400, 404, 409, 412, 415, 422, 429),
    openapi_extra=takes(PatchSweepRequest, bodies.MERGE, bodies.JSON),
)
async def patch_sweep(changing: ChangingDep) -> Response:
    """Change labels and priority, by a JSON merge patch."""
    return await changing.change(PatchSweepRequest)


@one.post("/cancel", status_code=202, response_model=Sweep, responses=ASKING)
async def cancel_sweep(asking: AskingDep) -> Response:
    """Save a checkpoint of each running trial and stop, for good."""
    return await asking.verb("cancel")


@one.post("/kill", status_code=202, response_model=Sweep, responses=ASKING)
async def kill_sweep(asking: AskingDep) -> Response:
    """Stop at once, for good."""
    return await asking.verb("kill")


@one.post("/pause", status_code=202, response_model=Sweep, responses=ASKING)
async def pause_sweep(asking: AskingDep) -> Response:
    """Save a checkpoint of each running trial and stop, until resumed."""
    return await asking.verb("pause")


@one.post("/resume", status_code=202, response_model=Sweep, responses=ASKING)
async def resume_sweep(asking: AskingDep) -> Response:
    """Go on with every trial where it was."""
    return await asking.verb("resume")


@one.get("/events", response_model=EventPage, responses=STREAMING)
async def get_sweep_events(wanted: WantedDep) -> Response:
    """What happened to a sweep and its trials, in order and without a gap."""
    return await wanted.answer(StreamKey("events", wanted.job.id))


@one.get("/logs", response_model=LogPage, responses=STREAMING)
async def get_sweep_logs(wanted: WantedDep, attempt: AttemptNumber = None) -> Response:
    """What an attempt wrote; ids are bytes of its log. The end of a stream names the next attempt, if there is one."""
    return await wanted.log(attempt)


@one.get("/trials", response_model=Trials, responses=refusals(404, 422, 429))
async def get_sweep_trials(
    found: JobDep,
    desk: DeskDep,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=10_000, description="the best of them")] = 1000,
) -> Response:
    """The leaderboard: each configuration's values and what its trials reached, while it searches too."""
    board = await desk.tasks.run(lambda: leaderboard(desk.settings.home, found, limit))
    return bodies.answer(request, board)


router.include_router(one)
