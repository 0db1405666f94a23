"""/v1/jobs/{job}/artifacts: the files of a job's run, listed and downloaded, whole or in parts."""

from __future__ import annotations

from bisect import bisect_right
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import Response

from api import bodies
from api.confined import OpenFile, files_inside, open_inside
from api.job_desk import DeskDep, JobDep
from api.job_documents import ArtifactPage
from api.openapi import also, refusals
from api.preconditions import IfNoneMatch
from api.problems import Problem
from api.ranges import content_type, file_answer
from api.times import rfc3339

router = APIRouter(prefix="/v1/jobs/{job}/artifacts", tags=["artifacts"])


@router.get("", response_model=ArtifactPage, responses=refusals(404, 422, 429))
async def list_artifacts(
    found: JobDep,
    desk: DeskDep,
    request: Request,
    after: Annotated[str | None, Query(max_length=4096, description="`next` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """Files by path: the model, checkpoints, metrics, logs, the model card."""
    files = await desk.files.run(lambda: files_inside(desk.store.run_folder(found.id)))
    start = 0 if after is None else bisect_right([file.path for file in files], after)
    page = files[start : start + limit]
    items = [
        {
            "path": file.path,
            "size": file.size,
            "modified_at": rfc3339(round(file.modified * 1000)),
            "content_type": content_type(file.path),
        }
        for file in page
    ]
    return bodies.answer(request, {"items": items, "next": page[-1].path if start + limit < len(files) else None})


@router.get(
    "/{path:path}",
    response_class=Response,
    responses={**refusals(404, 416, 422, 429), **also(200, "*/*"), **also(206, "*/*"), **also(304)},
)
async def get_artifact(
    found: JobDep,
    desk: DeskDep,
    request: Request,
    path: Annotated[str, Path(max_length=4096)],
    part: Annotated[str | None, Header(alias="Range", max_length=200, description="bytes=FIRST-LAST")] = None,
    of: Annotated[str | None, Header(alias="If-Range", max_length=200, description="the ETag of other parts")] = None,
    seen: IfNoneMatch = None,
) -> Response:
    """A file of the run, with its SHA-256 as `Repr-Digest` and as the ETag."""

    def opened() -> tuple[OpenFile, bytes]:
        file = open_inside(desk.store.run_folder(found.id), path)
        if file is None:
            raise Problem(404, "no-such-artifact", f"job {found.id} has no file of this path: see its artifacts")
        try:
            return file, desk.digests.of(file)
        except BaseException:
            file.close()
            raise

    file, digest = await desk.files.run(opened)
    return file_answer(file, digest, path, part, of, seen)
