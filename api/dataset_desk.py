"""What the requests about data sets of one process share: the store, and the thread in which they are checked."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import structlog
from fastapi import Depends, Request

from api.settings import Settings
from api.tasks import Tasks
from raydml.errors import RaydmlError, RecordConflict, RecordError, RecordNotFound, SpecError
from raydml.jobs.callers import Caller
from raydml.jobs.database import Database
from raydml.jobs.datasets import Datasets, Limits, folder_of, path_of
from raydml.jobs.roots import PLACES, confined

log = structlog.get_logger()
CHECKS = 1000  # data sets that may wait to be checked


class DatasetDesk:
    """Made with the application; on its event loop alone, but for what is said to run in threads."""

    def __init__(self, settings: Settings, database: Database) -> None:
        limits = Limits(
            part_bytes=min(settings.dataset_part_bytes, settings.max_body_bytes),
            upload_bytes=settings.max_dataset_bytes,
            project_bytes=settings.max_project_bytes,
            datasets=settings.max_datasets,
            unpacked_bytes=settings.max_unpacked_bytes,
            pixels=settings.max_image_pixels,
            memory=settings.dataset_check_bytes,
            seconds=settings.dataset_check_seconds,
        )
        self.settings = settings
        self.database = database
        self.store = Datasets(database, settings.home, limits)
        self._checks = Tasks(CHECKS, threads=1, name="data sets")
        self._begun: set[asyncio.Task[None]] = set()

    def resume(self) -> None:
        """Check what was to be checked when a server ended."""
        for identity in self.store.unchecked():
            self.check_later(identity)

    def check_later(self, identity: str) -> None:
        """Begin, and tell nobody how it ends but the log: its record does."""
        task = asyncio.create_task(self._check(identity))
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)

    async def validate(self, path: Path, data: dict[str, Any]) -> dict[str, Any]:
        """The report on data of which nothing is kept."""
        return await self._checks.run(lambda: self.store.validate(path, data))

    def close(self) -> None:
        """End what is being checked; the next server takes it up."""
        self.store.stopped.set()
        self._checks.close()

    def confined(self, document: dict[str, Any], caller: Caller) -> dict[str, Any]:
        """A spec, or its `data` alone, whose paths lie under the roots or are data sets of the caller's project.

        In a thread. Raises SpecError.
        """
        roots = (*self.settings.data_roots, folder_of(self.settings.home, caller.project))

        def uploaded(identity: str) -> Path:
            try:
                return path_of(session, identity, caller.project)
            except RecordError as error:
                raise SpecError(error.message) from error

        with self.database.reading() as session:
            return confined(document, roots, uploaded)

    def hold(self, spec: dict[str, Any], caller: Caller) -> None:
        """Within a transaction: the uploaded data sets that the spec uses stay until it ends. Raises RecordConflict."""
        uploads = folder_of(self.settings.home, caller.project)
        for keys in PLACES:
            value: Any = spec
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
            if value is not None and (path := Path(value)).is_relative_to(uploads):
                identity = path.relative_to(uploads).parts[0]
                try:
                    with self.database.transaction() as session:
                        path_of(session, identity, caller.project)
                except RecordNotFound:
                    raise RecordConflict(f"data set {identity} was deleted") from None

    async def _check(self, identity: str) -> None:
        try:
            row = await self._checks.run(lambda: self.store.check(identity))
            log.info("data set checked", dataset=identity, state=row.state, problem=row.problem)
        except RaydmlError as error:  # it was deleted meanwhile
            log.info("data set not checked", dataset=identity, problem=str(error))
        except Exception:
            log.exception("data set not checked", dataset=identity)


async def datasets_of(request: Request) -> DatasetDesk:
    """That of the application which answers the request."""
    desk: DatasetDesk = request.app.state.service.datasets
    return desk


DatasetsDep = Annotated[DatasetDesk, Depends(datasets_of)]
