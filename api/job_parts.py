"""/v1/jobs/{job}/checkpoints, workers, evaluation: what there is to see of a job besides itself."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api import bodies
from api.job_desk import DeskDep, JobDep, JobDesk
from api.job_documents import Checkpoints, Evaluation, WorkersAnswer
from api.job_shapes import checkpoint_document
from api.openapi import refusals
from api.times import rfc3339
from raydml.jobs.records import Event, Job
from raydml.jobs.states import LIVE
from raydml.training import history
from raydml.training.record import RunRecord

router = APIRouter(prefix="/v1/jobs/{job}", tags=["jobs"])
READING = refusals(404, 422, 429)
_CHANGE = ("step", "cause", "before", "after", "members", "down", "lost", "note")


@router.get("/checkpoints", response_model=Checkpoints, responses=READING)
async def get_checkpoints(found: JobDep, desk: DeskDep, request: Request) -> Response:
    """The checkpoints of a job: those that are there can be forked."""
    items = await desk.tasks.run(lambda: desk.store.checkpoints(found.id))
    return bodies.answer(request, {"items": list(map(checkpoint_document, items))})


@router.get("/workers", response_model=WorkersAnswer, responses=READING)
async def get_workers(found: JobDep, desk: DeskDep, request: Request) -> Response:
    """How the group of workers changed, and what each change cost."""
    events = await desk.tasks.run(lambda: desk.store.events_of_type(found.id, "membership"))
    return bodies.answer(request, _timeline(found, events))


@router.get("/evaluation", response_model=Evaluation, responses=READING)
async def get_evaluation(found: JobDep, desk: DeskDep, request: Request) -> Response:
    """How good a job's model is; empty until it was measured."""
    return bodies.answer(request, await desk.tasks.run(lambda: _evaluation(found, desk)))


def _timeline(job: Job, events: tuple[Event, ...]) -> dict[str, Any]:
    lines = [event.data for event in events]
    sizes = history.world_sizes(lines)
    now = sizes[-1]["workers"] if sizes and job.state in LIVE else 0
    changes = [
        {"time": rfc3339(round(1000 * line["time"])), **{name: line[name] for name in _CHANGE}} for line in lines
    ]
    return {"now": now, "wanted": {"min": job.workers.min, "max": job.workers.max}, "sizes": sizes, "changes": changes}


def _evaluation(job: Job, desk: JobDesk) -> dict[str, Any]:
    facts = RunRecord(desk.store.run_folder(job.id)).read()
    measured = [event.data for event in desk.store.events_of_type(job.id, "evaluation")]
    return {
        "state": job.state,
        "model_sha256": facts.get("sha256"),
        "metrics": facts.get("metrics", {}),
        "intervals": facts.get("intervals", {}),
        "baseline": facts.get("baseline", {}),
        "validation": measured,
    }
