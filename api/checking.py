"""A spec -> what is wrong with it and its data, or its plan, found out by a process beside the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from api.looking import Looker, looker_at_hand
from api.problems import UNPROCESSABLE, Problem
from api.tasks import busy
from raydml import errors
from raydml.spec import JobSpec

Answer = TypeVar("Answer")
STARTING = 300  # seconds that the process may take to load everything


class Checker:
    """The process, begun with the first question; `waiting` questions may wait for it, each for `seconds` of work.

    One that is whole when its application ends is left to the next application of this Python process: to load
    everything takes far longer than to look at most specs.
    """

    def __init__(self, home: Path, seconds: float, waiting: int) -> None:
        self._home = home
        self._seconds = seconds
        self._most = waiting
        self._waiting = 0
        self._turn = asyncio.Lock()
        self._looker: Looker | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="raydml-checker")
        self._begun: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Load everything now, so that the first question need not wait for it."""
        self._begun = asyncio.create_task(self._begin())

    async def check(self, spec: JobSpec, collections: Path) -> None:
        """Raises what training would raise before it begins, Problem 422 where finding out takes too long.

        `collections` is the folder of those that the spec may fill.
        """
        await self._ask(spec, plan=False, collections=str(collections))

    async def plan(self, spec: JobSpec) -> dict[str, Any]:
        """What `raydml plan --json` says. Raises as `check` does."""
        found: dict[str, Any] = (await self._ask(spec, plan=True))["plan"]
        return found

    async def close(self) -> None:
        """Leave the process to the next application, or end it where it is at work."""
        looker, self._looker = self._looker, None
        if looker is not None:
            if self._turn.locked():
                looker.end()
            else:
                looker.leave()
        self._thread.shutdown(wait=False)

    async def _begin(self) -> None:
        async with self._turn:
            with suppress(EOFError, TimeoutError):  # the first question tells
                await self._bounded(self._ready, STARTING)

    async def _ask(self, spec: JobSpec, plan: bool, collections: str = "") -> dict[str, Any]:
        if self._waiting >= self._most:
            raise busy(f"{self._waiting} specs are waiting to be checked already")
        asked = {"spec": spec.model_dump(mode="json"), "home": str(self._home), "plan": plan}
        asked["collections"] = collections
        self._waiting += 1
        try:
            async with self._turn:
                answer = await self._answer(json.dumps(asked).encode() + b"\n")
        finally:
            self._waiting -= 1
        if "error" in answer:
            kind = getattr(errors, answer["error"]["kind"])
            raise kind(answer["error"]["message"])
        return answer

    async def _answer(self, line: bytes) -> dict[str, Any]:
        """What the process says. Raises Problem 422 where it says nothing in time, or dies over it."""
        try:
            looker = await self._bounded(self._ready, STARTING)
            said = await self._bounded(lambda: looker.ask(line), self._seconds)
        except TimeoutError:
            raise Problem(
                UNPROCESSABLE,
                "too-large-to-check",
                f"the data and the model could not be looked at within {self._seconds:g} s: take fewer or smaller ones",
            ) from None
        except EOFError:
            raise Problem(
                UNPROCESSABLE,
                "too-large-to-check",
                "the process that looked at the spec died over it: is the model too large for the memory?",
            ) from None
        found: dict[str, Any] = json.loads(said)
        return found

    async def _bounded(self, work: Callable[[], Answer], seconds: float) -> Answer:
        """The work in the thread; the process is ended where it takes too long, dies, or nobody waits any more."""
        try:
            return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(self._thread, work), seconds)
        except BaseException:
            looker, self._looker = self._looker, None
            if looker is not None:
                looker.end()
            raise

    def _ready(self) -> Looker:
        if self._looker is None or not self._looker.alive:
            self._looker = looker_at_hand()
        self._looker.wait()
        return self._looker
