"""What the requests of one process share: settings, open collections, the queue of searches, threads for the rest."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path as FilePath
from typing import Annotated, TypeVar

import structlog
from fastapi import Depends, Path, Request

from api.access import Access, caller_of
from api.auditing import Auditor
from api.counting import Requests
from api.dataset_desk import DatasetDesk
from api.job_desk import JobDesk
from api.job_documents import JOB_ID
from api.problems import Problem
from api.searches import Searches
from api.settings import Settings
from api.store import NAME, Store
from api.tasks import Tasks
from raydml.jobs.callers import Caller
from raydml.jobs.database import Database
from raydml.jobs.models import Models
from raydml.jobs.projects import project_home
from raydml.search import Collection

log = structlog.get_logger()
Answer = TypeVar("Answer")
ANALYSES = 4  # questions about whole collections that may wait at a time


class Service:
    """Made with the application; threads start with the first request that needs them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.eager = False  # whether to load early what many requests never need
        self.requests = Requests()
        self.database = Database(settings.database_url)
        self._stores: dict[str, Store] = {}
        self.tasks = Tasks(settings.max_waiting_tasks)
        self.analyses = Tasks(ANALYSES, threads=1, name="analyses")
        self.embedding = Tasks(settings.max_waiting_tasks, threads=1, name="embeddings")
        self.searches = Searches(settings.max_waiting_queries, settings.max_batch_queries)
        self.access = Access(settings, self.database, self.tasks)
        self.auditor = Auditor(self.database)
        self.models = Models(self.database, settings.home)
        self.datasets = DatasetDesk(settings, self.database)
        self.jobs = JobDesk(settings, self.database, self.tasks, self.datasets)

    def begin(self) -> None:
        """Take up what another server left, and load what the first request of a job needs."""
        self.datasets.resume()
        if self.eager:
            self.jobs.checker.begin()

    def open(self) -> None:
        """Make the server's folder, and bring its database up to date."""
        self.settings.home.mkdir(parents=True, exist_ok=True)
        self.database.migrate()

    def store_of(self, caller: Caller) -> Store:
        """The collections of the caller's project; those of other projects are not there."""
        store = self._stores.get(caller.project)
        if store is None:
            home, settings = project_home(self.settings.home, caller.project), self.settings
            runs = partial(self.run_of, caller)
            store = Store(home, settings.patience, settings.max_collections, runs)
            store = self._stores.setdefault(caller.project, store)
        return store

    def run_of(self, caller: Caller, name: str) -> FilePath:
        """The folder of a run in the caller's project, or of a job of it. Raises JobNotFound for other owners' jobs,
        whose runs lie together in the server's folder."""
        if re.fullmatch(JOB_ID, name):
            return self.jobs.store.run_folder(self.jobs.store.get(name, caller.project).id)
        return project_home(self.settings.home, caller.project) / "runs" / name

    def opened(self) -> list[tuple[str, Collection]]:
        """Every collection that is open in this process, behind its project."""
        return [(project, each) for project, store in list(self._stores.items()) for each in store.opened()]

    async def collection(self, store: Store, name: str) -> Collection:
        """The collection of this name or alias. Raises Problem 404 where there is none."""
        held = store.held(name)
        return held if held is not None else await self.tasks.run(lambda: store.get(name))

    async def read(self, collection: Collection, work: Callable[[], Answer], min_lsn: int | None) -> Answer:
        """Do the work in a thread, which sees at least this change."""

        def late_enough() -> Answer:
            check_lsn(collection, min_lsn)
            return work()

        return await self.tasks.run(late_enough)

    async def close(self) -> None:
        """Finish what was begun, and give back threads, files and processes."""
        await self.jobs.close()
        self.datasets.close()
        log.info("searches", queries=self.searches.queries, calls=self.searches.calls)
        for threads in (self.searches, self.embedding, self.analyses, self.auditor, self.tasks):
            threads.close()
        for store in self._stores.values():
            store.close()
        self.database.close()


def lsn(collection: Collection) -> int:
    """The number of the collection's last change."""
    return collection.read(lambda reading: reading.view.state.sequence)


def check_lsn(collection: Collection, wanted: int | None) -> None:
    """Raises Problem 412 where the collection has not come so far: its reads see all changes of all processes."""
    if wanted is not None and (found := lsn(collection)) < wanted:
        raise Problem(
            412,
            "lsn-not-reached",
            f"the collection is at lsn {found}, not {wanted}: it was replaced or restored, or the lsn is another's",
        )


async def service_of(request: Request) -> Service:
    """The service of the application that answers the request; a coroutine, as others are called in a thread."""
    service: Service = request.app.state.service
    return service


async def store_of(request: Request) -> Store:
    """The collections that the caller may see."""
    return (await service_of(request)).store_of(await caller_of(request))


async def collection_of(name: Annotated[str, Path(pattern=NAME)], request: Request) -> Collection:
    """The collection that the path names."""
    return await (await service_of(request)).collection(await store_of(request), name)


ServiceDep = Annotated[Service, Depends(service_of)]
StoreDep = Annotated[Store, Depends(store_of)]
CollectionDep = Annotated[Collection, Depends(collection_of)]
