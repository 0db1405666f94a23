"""What the requests about jobs of one process share: the store, keys of requests, followers, the checker of specs."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import Depends, Path, Request

from api.access import CallerDep
from api.checking import Checker
from api.confined import Digests
from api.dataset_desk import DatasetDesk
from api.followers import Followers
from api.job_documents import JOB_ID
from api.job_source import JobSource, StreamKey
from api.once import Once
from api.problems import UNPROCESSABLE, Problem
from api.settings import Settings
from api.tasks import Tasks
from raydml.errors import ResourceError
from raydml.jobs.callers import Caller
from raydml.jobs.database import Database
from raydml.jobs.projects import project_home
from raydml.jobs.records import Job
from raydml.jobs.store import JobStore
from raydml.jobs.sweeping import trial_need
from raydml.spec import JobSpec
from raydml.specfile import parse_spec
from raydml.tuning.admission import admitted

CHECKS = 16  # specs that may wait to be checked


class JobDesk:
    """Made with the application; the checker's process starts with the first spec."""

    def __init__(self, settings: Settings, database: Database, tasks: Tasks, datasets: DatasetDesk) -> None:
        self.settings = settings
        self.database = database
        self.tasks = tasks
        self.datasets = datasets
        self.store = JobStore(database, settings.home)
        self.once = Once(database, tasks)
        self.checker = Checker(settings.home, settings.check_seconds, CHECKS)
        self.source = JobSource(self.store)
        self.followers: Followers[StreamKey] = Followers(
            self.source, settings.max_followers, settings.watch_seconds, settings.heartbeat_seconds
        )
        self.files = Tasks(settings.max_waiting_tasks, threads=1, name="files")
        self.digests = Digests()

    def admitted(self, spec: JobSpec, caller: Caller) -> JobSpec:
        """The spec with its files found under the server's roots, or among the project's data sets.

        Raises SpecError where it names others, or code, and Problem 422 where no trial of a sweep can ever fit.
        """
        found = parse_spec(self.datasets.confined(spec.model_dump(mode="json"), caller))
        if found.tune is not None and self.settings.cluster is None:  # of a cluster, the supervisor tells
            try:
                admitted(trial_need(found), self.settings.cpus, 0.0, found.tune.concurrency)
            except ResourceError as error:
                raise Problem(UNPROCESSABLE, "no-room", error.message) from error
        return found

    def collections_of(self, caller: Caller) -> FilePath:
        """The folder of the collections that the caller's jobs fill."""
        return project_home(self.settings.home, caller.project) / "collections"

    def accept(self, spec: JobSpec, caller: Caller) -> dict[str, Any]:
        """The spec of a job that is made in this transaction; its data sets stay. Raises QuotaExceeded."""
        document = spec.model_dump(mode="json")
        self.datasets.hold(document, caller)
        self.store.check_room(caller.project, self.settings.max_live_jobs)
        return document

    async def close(self) -> None:
        """Give back threads and the checker's process."""
        self.followers.close()
        self.files.close()
        await self.checker.close()


async def desk_of(request: Request) -> JobDesk:
    """That of the application which answers the request."""
    desk: JobDesk = request.app.state.service.jobs
    return desk


DeskDep = Annotated[JobDesk, Depends(desk_of)]
JobId = Annotated[str, Path(alias="job", pattern=JOB_ID, description="a job's id")]


async def job_of(job: JobId, desk: DeskDep, caller: CallerDep) -> Job:
    """The job that the path names. Raises JobNotFound for other owners' jobs, too."""
    return await desk.tasks.run(lambda: desk.store.get(job, caller.project))


JobDep = Annotated[Job, Depends(job_of)]
