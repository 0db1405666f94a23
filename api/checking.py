"""A spec -> what is wrong with it and its data, or its plan, found out by a process beside the server."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any

import structlog

from api.problems import UNPROCESSABLE, Problem
from api.tasks import busy
from raydml import errors
from raydml.spec import JobSpec

log = structlog.get_logger()
LIMIT = 1 << 26  # bytes of one answer
STARTING = 300  # seconds that the process may take to load everything


class Checker:
    """The process, begun with the first question; `waiting` questions may wait for it, each for `seconds` of work."""

    def __init__(self, home: Path, seconds: float, waiting: int) -> None:
        self._home = home
        self._seconds = seconds
        self._most = waiting
        self._waiting = 0
        self._turn = asyncio.Lock()
        self._process: Process | None = None

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
        """End the process."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()

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
        """What the process says; it is ended where it says nothing in time, or where nobody waits any more."""
        done = False
        try:
            process = await self._ready()
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(line)
            said = await asyncio.wait_for(process.stdout.readline(), self._seconds)
            done = said.endswith(b"\n")
        except TimeoutError:
            raise Problem(
                UNPROCESSABLE,
                "too-large-to-check",
                f"the data and the model could not be looked at within {self._seconds:g} s: take fewer or smaller ones",
            ) from None
        finally:
            if not done:
                await self.close()
        if not done:
            raise Problem(
                UNPROCESSABLE,
                "too-large-to-check",
                "the process that looked at the spec died over it: is the model too large for the memory?",
            )
        found: dict[str, Any] = json.loads(said)
        return found

    async def _ready(self) -> Process:
        if self._process is None or self._process.returncode is not None:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            command = (sys.executable, "-m", "api.checker")
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=PIPE, env=environment, limit=LIMIT
            )
            assert self._process.stdout is not None
            await asyncio.wait_for(self._process.stdout.readline(), STARTING)  # an empty line: everything is loaded
        return self._process
