"""Deeds -> rows of the audit log: those that wait together are written in one transaction."""

from __future__ import annotations

import asyncio

from api.tasks import Tasks
from raydml.jobs.audit import Deed, record
from raydml.jobs.database import Database

_ENDLESS = 1 << 30  # deeds wait as long as the requests that did them


class Auditor:
    """The audit log of one process; on its event loop alone."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._thread = Tasks(_ENDLESS, threads=1, name="audit")
        self._waiting: list[tuple[Deed, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def write(self, deed: Deed) -> None:
        """Returns when the deed is on the disk."""
        written = asyncio.get_running_loop().create_future()
        self._waiting.append((deed, written))
        if self._writer is None:
            self._writer = asyncio.create_task(self._drain())
        await written

    def close(self) -> None:
        """Wait for what is being written."""
        self._thread.close()

    async def _drain(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            deeds = [deed for deed, _ in batch]
            try:
                await self._thread.run(lambda deeds=deeds: self._record(deeds))  # type: ignore[misc]
            except Exception as error:  # each request that waits fails with it
                for _, written in batch:
                    if not written.done():
                        written.set_exception(error)
            else:
                for _, written in batch:
                    if not written.done():
                        written.set_result(None)
        self._writer = None

    def _record(self, deeds: list[Deed]) -> None:
        with self._database.transaction() as session:
            record(session, deeds)
