"""/v1/jobs/{job}/cancel, kill, pause, resume, resize: what an owner wants of a job; the supervisor brings it about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from api import bodies
from api.access import CallerDep
from api.job_desk import DeskDep, JobDesk, JobId
from api.job_documents import Job, ResizeRequest, WorkersRange
from api.job_shapes import job_document
from api.once import Done, Key
from api.openapi import refusals, takes
from api.preconditions import IfMatch, check_match, etag
from raydml.jobs import records
from raydml.jobs.callers import Caller

router = APIRouter(prefix="/v1/jobs/{job}", tags=["jobs"])
ASKING = refusals(404, 409, 412, 422, 429)


@dataclass(frozen=True)
class Asking:
    """A request to do something with a job, by its headers."""

    job: str
    desk: JobDesk
    caller: Caller
    request: Request
    key: str | None
    seen: str | None

    async def once(self, change: Callable[[], records.Job]) -> Response:
        """Do it once, where the job is as it was seen. Raises Problem 412."""

        async def prepare() -> None:
            return None

        def act(_: None) -> Done:
            if self.seen is not None:
                check_match(self.seen, self.desk.store.get(self.job, self.caller.project).version)
            changed = change()
            return Done(job_document(changed), 202, {"ETag": etag(changed.version)})

        return await self.desk.once.do(self.request, self.caller, self.key, prepare, act)

    async def verb(self, name: str) -> Response:
        """One of the verbs that say nothing but their name."""
        return await self.once(
            lambda: self.desk.store.ask(name, self.job, project=self.caller.project, by=self.caller.name)
        )


async def _asking(
    job: JobId, desk: DeskDep, caller: CallerDep, request: Request, key: Key = None, seen: IfMatch = None
) -> Asking:
    return Asking(job, desk, caller, request, key, seen)


AskingDep = Annotated[Asking, Depends(_asking)]


@router.post("/cancel", status_code=202, response_model=Job, responses=ASKING)
async def cancel_job(asking: AskingDep) -> Response:
    """Save a checkpoint and stop, for good."""
    return await asking.verb("cancel")


@router.post("/kill", status_code=202, response_model=Job, responses=ASKING)
async def kill_job(asking: AskingDep) -> Response:
    """Stop at once, for good."""
    return await asking.verb("kill")


@router.post("/pause", status_code=202, response_model=Job, responses=ASKING)
async def pause_job(asking: AskingDep) -> Response:
    """Save a checkpoint and stop, until resumed."""
    return await asking.verb("pause")


@router.post("/resume", status_code=202, response_model=Job, responses=ASKING)
async def resume_job(asking: AskingDep) -> Response:
    """Go on from the last checkpoint."""
    return await asking.verb("resume")


@router.post(
    "/resize",
    status_code=202,
    response_model=Job,
    responses=refusals(400, 404, 409, 412, 415, 422, 429),
    openapi_extra=takes(ResizeRequest),
)
async def resize_job(asking: AskingDep) -> Response:
    """Another number of workers, at the next step boundary; the trained bits stay the same."""
    workers = (await bodies.read(asking.request, ResizeRequest)).workers
    fewest, most = (workers.min, workers.max) if isinstance(workers, WorkersRange) else (None, workers)
    store, caller = asking.desk.store, asking.caller
    return await asking.once(lambda: store.resize(asking.job, fewest, most, project=caller.project, by=caller.name))
