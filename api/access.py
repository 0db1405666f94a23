"""A request's headers -> who asks, and whether they may: the key of a bearer token, or a person on this machine.

While there are no keys, a server on a loopback address serves everybody who reaches it, as one local caller with all
scopes. Once a key was made, and always on other addresses, every request needs one.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from starlette.datastructures import Headers

from api.problems import BUSY, Problem
from api.scopes import needed
from api.settings import Settings, is_loopback
from api.tasks import Tasks
from raydml.jobs import keys
from raydml.jobs.callers import LOCAL, Caller
from raydml.jobs.database import Database
from raydml.jobs.ids import milliseconds
from raydml.jobs.rate import Buckets
from raydml.jobs.tokens import hashed

Answer = TypeVar("Answer")
FRESH = 1.0  # seconds for which what the database said of a token is believed: a revoked key is refused after it
_KEPT = 10_000  # tokens


class Access:
    """Callers of one process; on its event loop alone."""

    def __init__(
        self, settings: Settings, database: Database, tasks: Tasks, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._loopback = is_loopback(settings.host)
        self._database = database
        self._tasks = tasks
        self._clock = clock
        self._known: dict[str, tuple[Caller, float]] = {}
        self._looking: dict[str, asyncio.Future[Any]] = {}
        self._open = (False, -math.inf)
        self._buckets = Buckets(settings.requests_per_second / settings.workers, settings.requests_at_once)

    async def admit(self, method: str, path: str, headers: Headers) -> Caller:
        """Who asks. Raises Problem 401 where nobody is known by the headers, 429 where a key asks too often."""
        caller = await self._caller(headers.get("authorization"))
        if caller.key is not None and (wait := self._buckets.take(caller.key, self._clock())):
            raise Problem(
                BUSY,
                "too-many-requests",
                f"this key may send {self._buckets.rate:g} requests a second: nothing was done, send it again later",
                headers={"Retry-After": str(math.ceil(wait))},
            )
        return caller

    async def admits(self, headers: Headers) -> bool:
        """Whether who sent these is still known: an answer that goes on and on asks again."""
        try:
            await self._caller(headers.get("authorization"))
        except Problem as problem:
            return problem.status_code != 401
        return True

    async def _caller(self, authorization: str | None) -> Caller:
        if authorization is None:
            if await self._is_open():
                return LOCAL
            raise unauthorised("this server needs an API key: send it as `Authorization: Bearer raydml_...`")
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise unauthorised("the header Authorization says `Bearer`, and then an API key")
        return await self._known_caller(token.strip())

    async def _known_caller(self, token: str) -> Caller:
        digest, now = hashed(token), self._clock()
        found = self._known.get(digest)
        if found is not None and now < found[1]:
            return found[0]
        caller = await self._look(digest, lambda: self._look_up(token))
        if caller is None:
            self._known.pop(digest, None)
            raise unauthorised("this API key is not known here, was revoked, or has expired", "invalid_token")
        if len(self._known) >= _KEPT:
            self._known.clear()
        self._known[digest] = caller, now + FRESH
        return caller

    def _look_up(self, token: str) -> Caller | None:
        now = milliseconds()
        with self._database.reading() as session:
            caller = keys.caller_of(session, token, now)
            noted = caller is None or keys.noted(session, str(caller.key), now)
        if not noted:
            with self._database.transaction() as session:
                keys.note_use(session, str(caller.key), now)  # type: ignore[union-attr]
        return caller

    async def _is_open(self) -> bool:
        if not self._loopback:
            return False
        answer, until = self._open
        if self._clock() >= until:
            answer = not await self._look("", self._any_key)
            self._open = answer, self._clock() + FRESH
        return answer

    async def _look(self, what: str, work: Callable[[], Answer]) -> Answer:
        """What the database says; one look for all who wait for it, as streams by the hundred ask at a time."""
        if what not in self._looking:
            self._looking[what] = asyncio.ensure_future(self._tasks.run(work))
            self._looking[what].add_done_callback(lambda _: self._looking.pop(what))
        found: Answer = await asyncio.shield(self._looking[what])
        return found

    def _any_key(self) -> bool:
        with self._database.reading() as session:
            return keys.any_key(session)


def check_scope(caller: Caller, method: str, path: str) -> None:
    """Raises Problem 403, which names the scope that the caller's key lacks."""
    scope = needed(method, path)
    if scope != "none" and not caller.may(scope):
        raise Problem(
            403,
            "missing-scope",
            f"this needs the scope {scope}, and the key has {', '.join(sorted(caller.scopes))}: ask for another key",
            headers={"WWW-Authenticate": f'Bearer realm="raydml", error="insufficient_scope", scope="{scope}"'},
        )


def unauthorised(detail: str, code: str | None = None) -> Problem:
    """Nobody is known by what the request shows."""
    challenge = 'Bearer realm="raydml"' + (f', error="{code}"' if code else "")
    return Problem(401, "unauthorised", detail, headers={"WWW-Authenticate": challenge})


async def caller_of(request: Request) -> Caller:
    """Who sent the request; the guard has found out."""
    caller: Caller = request.scope["caller"]
    return caller


CallerDep = Annotated[Caller, Depends(caller_of)]
