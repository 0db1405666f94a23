"""/v1/jobs/{job}/events, metrics, logs: pages of what came so far, or server-sent events that go on to the end."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from api import bodies, eventstream
from api.access import Access
from api.eventstream import EventStream, LastEventId
from api.job_desk import DeskDep, JobDep, JobDesk
from api.job_documents import EventPage, LogPage, MetricPage
from api.job_source import StreamKey
from api.openapi import also, refusals
from api.problems import UNPROCESSABLE, Problem
from raydml.jobs.records import Job

router = APIRouter(prefix="/v1/jobs/{job}", tags=["streams"])
STREAMING = {**refusals(404, 410, 422, 429, 503), **also(200, eventstream.MEDIA_TYPE)}


@dataclass(frozen=True)
class Wanted:
    """How much of a job's stream is asked for, and how."""

    job: Job
    desk: JobDesk
    request: Request
    after: int
    limit: int

    async def answer(self, key: StreamKey, **more: int) -> Response:
        """Events until the stream ends, where the client asks for events, or a page with `more` beside it.

        Raises Problem 410 where what comes behind the id has expired, 422 where the id was never given.
        """
        await self.desk.tasks.run(lambda: self._check(key))
        if eventstream.wanted(self.request):
            self.desk.followers.check_room()
            return EventStream(self._while_admitted(self.desk.followers.frames(key, self.after)))
        items = await self.desk.tasks.run(lambda: self.desk.source.read(key, self.after, self.limit))
        last = items[-1].id if items else self.after
        return bodies.answer(self.request, {**more, "items": [item.document for item in items], "next": last})

    async def _while_admitted(self, frames: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        """The frames, until the key that asked for them is revoked or expires: the stream breaks off then."""
        access: Access = self.request.app.state.service.access
        async with aclosing(frames):
            async for frame in frames:
                if not await access.admits(self.request.headers):
                    return
                yield frame

    async def log(self, attempt: int | None) -> Response:
        """The log of an attempt, the newest without a number. Raises Problem 404 where there was none of it."""
        newest = self.job.attempt
        number = newest if attempt is None else attempt
        if number > newest:
            raise Problem(404, "no-such-attempt", f"job {self.job.id} has had {newest} attempts, not {number}")
        return await self.answer(StreamKey("logs", self.job.id, number), attempt=number)

    def _check(self, key: StreamKey) -> None:
        head = self.desk.source.head(key)
        if self.after > head.last:
            raise Problem(
                UNPROCESSABLE, "invalid-request", f"after: {self.after} was not given yet, the last id is {head.last}"
            )
        if self.after < head.first - 1:
            raise Problem(
                410, "expired", f"what came behind {self.after} is kept no more: go on with after={head.first - 1}"
            )


async def _wanted(
    job: JobDep,
    desk: DeskDep,
    request: Request,
    after: Annotated[int, Query(ge=0, lt=1 << 53, description="the id that came last; 0: from the start")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="items of a page")] = 100,
    last: LastEventId = None,
) -> Wanted:
    return Wanted(job, desk, request, after if last is None else int(last), limit)


WantedDep = Annotated[Wanted, Depends(_wanted)]
AttemptNumber = Annotated[int | None, Query(ge=0, lt=1 << 31, description="the newest if none is given")]


@router.get("/events", response_model=EventPage, responses=STREAMING)
async def get_events(wanted: WantedDep) -> Response:
    """What happened to a job, in order and without a gap."""
    return await wanted.answer(StreamKey("events", wanted.job.id))


@router.get("/metrics", response_model=MetricPage, responses=STREAMING)
async def get_metrics(wanted: WantedDep) -> Response:
    """What training logged, in order."""
    return await wanted.answer(StreamKey("metrics", wanted.job.id))


@router.get("/logs", response_model=LogPage, responses=STREAMING)
async def get_logs(wanted: WantedDep, attempt: AttemptNumber = None) -> Response:
    """What an attempt wrote; ids are bytes of its log. The end of a stream names the next attempt, if there is one."""
    return await wanted.log(attempt)
