"""What is asked of jobs and of sweeps alike: make one, list them, change one. Routers say which kind they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Query, Request
from fastapi.responses import Response

from api import bodies
from api.access import CallerDep
from api.cursors import cursor_of, position_of
from api.documents import Name
from api.job_desk import DeskDep, JobDesk, JobId
from api.job_documents import LABEL_KEY, CreateJobRequest, PatchJobRequest, PatchSweepRequest
from api.job_shapes import job_document
from api.once import Done, Key
from api.preconditions import IfMatch, check_match, etag
from api.problems import UNPROCESSABLE, Problem
from api.specs import spec_of, wrong_spec
from raydml.errors import SpecError
from raydml.jobs import records
from raydml.jobs.callers import Caller
from raydml.jobs.records import Kind
from raydml.jobs.states import State
from raydml.spec import JobSpec

LabelFilter = Annotated[str, Query(pattern=rf"{LABEL_KEY[:-1]}:[^\x00-\x1f\x7f]{{0,200}}$")]
PATHS: dict[Kind, str] = {"job": "/v1/jobs", "sweep": "/v1/sweeps"}


@dataclass(frozen=True)
class Making:
    """A request to make a job or a sweep, once for its key."""

    desk: JobDesk
    caller: Caller
    request: Request
    key: str | None

    async def make(self, kind: Kind) -> Response:
        """Look at the spec, its data and its models, and keep it. Raises Problem 422."""
        body = await bodies.read(self.request, CreateJobRequest)
        desk, caller = self.desk, self.caller

        async def prepare() -> JobSpec:
            spec = await self.spec(kind, body.spec)
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

        return await desk.once.do(self.request, caller, self.key, prepare, act)

    async def spec(self, kind: Kind, sent: dict[str, Any] | str) -> JobSpec:
        """The spec that was sent, as it may be kept. Raises Problem 422 where it is of the other kind."""
        content = await self.request.body()
        return await self.desk.tasks.run(lambda: self.desk.admitted(of_kind(kind, spec_of(sent, content)), self.caller))


async def _making(desk: DeskDep, caller: CallerDep, request: Request, key: Key = None) -> Making:
    return Making(desk, caller, request, key)


MakingDep = Annotated[Making, Depends(_making)]


def of_kind(kind: Kind, spec: JobSpec) -> JobSpec:
    """The spec. Raises Problem 422 with the way out where the other kind is made of such specs."""
    if kind == "job" and spec.tune is not None:
        problem = f"this spec searches: POST it to {PATHS['sweep']}, or leave the section tune out"
    elif kind == "sweep" and spec.tune is None:
        problem = f"a sweep needs a section tune with a space: write one, or POST the spec to {PATHS['job']}"
    else:
        return spec
    raise wrong_spec(SpecError(f"tune: {problem}", problems=[{"path": "tune", "line": None, "problem": problem}]))


@dataclass(frozen=True)
class Listing:
    """A request for a page of a list."""

    desk: JobDesk
    caller: Caller
    request: Request
    states: list[State]
    label: list[str]
    name: str | None
    limit: int
    cursor: str | None

    async def page(self, kind: Kind) -> Response:
        """Those of the kind, the newest first. Raises Problem 422 for a cursor of other filters."""
        project, states, name = self.caller.project, self.states, self.name
        labels = dict(each.split(":", 1) for each in self.label)
        if len(labels) < len(set(self.label)):
            raise Problem(UNPROCESSABLE, "invalid-request", "label: a job has one value of a label: name each key once")
        asked = (project, kind, sorted(states), sorted(labels.items()), name)
        after = position_of(self.cursor, *asked)
        page = await self.desk.tasks.run(
            lambda: self.desk.store.list(
                project=project, kind=kind, states=states, labels=labels, name=name, after=after, limit=self.limit
            )
        )
        following = None if page.next is None else cursor_of(page.next, *asked)
        return bodies.answer(self.request, {"items": list(map(job_document, page.items)), "next_cursor": following})


async def _listing(
    desk: DeskDep,
    caller: CallerDep,
    request: Request,
    state: Annotated[list[State], Query(description="any of these")] = [],  # noqa: B006
    label: Annotated[list[LabelFilter], Query(max_length=16, description="all of these, each key:value")] = [],  # noqa: B006
    name: Annotated[Name | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before")] = None,
) -> Listing:
    return Listing(desk, caller, request, state, label, name, limit, cursor)


ListingDep = Annotated[Listing, Depends(_listing)]


@dataclass(frozen=True)
class Changing:
    """A request to change what an owner set, by a JSON merge patch."""

    job: str
    desk: JobDesk
    caller: Caller
    request: Request
    seen: str | None

    async def change(self, model: type[PatchSweepRequest]) -> Response:
        """Change what the body names, where the job is as it was seen. Raises Problem 412."""
        body = await bodies.read(self.request, model, (bodies.MERGE, bodies.JSON))
        return shown(self.request, await self.desk.tasks.run(lambda: self._changed(body)))

    def _changed(self, body: PatchSweepRequest) -> records.Job:
        named, store = body.model_fields_set, self.desk.store
        with self.desk.database.transaction():
            now = store.get(self.job, self.caller.project)
            check_match(self.seen, now.version)
            labels: dict[str, str | None] | None = None
            if "labels" in named:
                labels = dict.fromkeys(now.labels) if body.labels is None else body.labels
            most = None
            if isinstance(body, PatchJobRequest) and "max_workers" in named:
                most = now.spec["parallel"]["workers"]["max"] if body.max_workers is None else body.max_workers
            return store.patch(
                self.job,
                project=self.caller.project,
                labels=labels,
                priority=(body.priority or 0) if "priority" in named else None,
                max_workers=most,
                by=self.caller.name,
            )


async def _changing(job: JobId, desk: DeskDep, caller: CallerDep, request: Request, seen: IfMatch = None) -> Changing:
    return Changing(job, desk, caller, request, seen)


ChangingDep = Annotated[Changing, Depends(_changing)]


def made(job: records.Job) -> Done:
    """The answer to who made a job."""
    headers = {"Location": f"{PATHS[job.kind]}/{job.id}", "ETag": etag(job.version)}
    return Done(job_document(job), 201, headers)


def shown(request: Request, job: records.Job) -> Response:
    """The answer to who asked for a job, or changed it."""
    answer = bodies.answer(request, job_document(job))
    answer.headers["ETag"] = etag(job.version)
    return answer
