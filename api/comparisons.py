"""/v1/jobs/{job}/evaluation:compare: what was gained from a job to another, on the same queries."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from api import bodies
from api.access import CallerDep
from api.comparison_documents import ComparisonAnswer, ComparisonQuestion
from api.job_desk import DeskDep, JobDep
from api.openapi import refusals
from raydml.spec import CompareSpec

router = APIRouter(prefix="/v1/jobs/{job}/evaluation:compare", tags=["jobs"])


@router.get("", response_model=ComparisonAnswer, responses=refusals(404, 409, 422, 429))
async def compare_evaluations(
    found: JobDep, desk: DeskDep, caller: CallerDep, request: Request, asked: Annotated[ComparisonQuestion, Query()]
) -> Response:
    """What was gained from this job to another on the same queries, and which queries were fixed or broken.

    Several jobs on both sides are seeds of two configurations. 409 where a job was not measured; 422 where they were
    not asked the same: protocol, distance, queries or gallery.
    """
    how = CompareSpec(**asked.model_dump(include=set(CompareSpec.model_fields)))

    def compared() -> dict[str, Any]:
        from raydml.comparison import compare_runs  # loads torch, which most servers never need
        from raydml.runs import Run

        def runs(ids: list[str]) -> list[tuple[str, Run]]:
            jobs = [desk.store.get(id, caller.project) for id in ids]
            return [(job.id, Run(desk.store.run_folder(job.id), desk.settings.home)) for job in jobs]

        return compare_runs(runs([found.id, *asked.beside]), runs(asked.with_), how).to_dict()

    return bodies.answer(request, await desk.tasks.run(compared))
