"""Work that blocks -> threads, a bounded number at a time; more is refused at once rather than queued without end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import structlog

from api.problems import BUSY, Problem

Answer = TypeVar("Answer")
THREADS = 8  # writers that wait together for the disk are committed together


class Tasks:
    """Threads for reads and writes; searches have a thread of their own."""

    def __init__(self, limit: int, threads: int = THREADS, name: str = "tasks") -> None:
        self._limit = limit
        self._name = name
        self.waiting = 0
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"raydml-{name}")

    async def run(self, work: Callable[[], Answer]) -> Answer:
        """Do the work in a thread. Raises Problem 429 where as many wait already as may."""
        if self.waiting >= self._limit:
            raise busy(f"{self.waiting} {self._name} are waiting already")
        self.waiting += 1
        context = structlog.contextvars.get_contextvars()

        def bound() -> Answer:
            with structlog.contextvars.bound_contextvars(**context):
                return work()

        future = asyncio.get_running_loop().run_in_executor(self._pool, bound)
        future.add_done_callback(self._done)
        return await future

    def close(self) -> None:
        """Wait for what is running."""
        self._pool.shutdown(wait=True)

    def _done(self, _: object) -> None:
        self.waiting -= 1


def busy(why: str) -> Problem:
    """The request was not begun, and may be sent again."""
    return Problem(BUSY, "busy", f"{why}: nothing was done, send it again in a second", headers={"Retry-After": "1"})
