"""A request that changes something -> done once, however often it is sent under one `Idempotency-Key`."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import Header, Request
from fastapi.responses import Response

from api import bodies
from api.problems import UNPROCESSABLE, Problem
from api.tasks import Tasks
from raydml.jobs.callers import Caller
from raydml.jobs.database import Database
from raydml.jobs.idempotency import AnotherBody, Answer, Asked, Begun, InProgress, Keys

Prepared = TypeVar("Prepared")
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x21-\x7e]{1,200}$",
        description="names the request: sent again within a day, it gets the same answer and changes nothing; 422 with "
        "another body, 409 while the first one is at work",
    ),
]


@dataclass(frozen=True)
class Done:
    """What was done, as a document and headers."""

    document: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class Once:
    """Requests of one database; `tasks` are its threads."""

    def __init__(self, database: Database, tasks: Tasks) -> None:
        self._database = database
        self._tasks = tasks
        self._keys = Keys(database)

    async def do(
        self,
        request: Request,
        caller: Caller,
        key: str | None,
        prepare: Callable[[], Awaitable[Prepared]],
        act: Callable[[Prepared], Done],
    ) -> Response:
        """Prepare, which may take long and keeps nothing; then act, within one transaction that keeps the answer, too.

        Raises Problem 409 or 422 by the key, and whatever the two raise: then the key is free again.
        """
        begun = None if key is None else await self._begin(request, caller, key)
        if isinstance(begun, Answer):
            return _answered(request, Done(orjson.loads(begun.body), begun.status, begun.headers), {_REPLAYED: "true"})
        try:
            prepared = await prepare()
            done = await self._tasks.run(lambda: self._act(begun, lambda: act(prepared)))
        except BaseException:
            if begun is not None:
                await self._tasks.run(lambda: self._keys.give_up(begun))
            raise
        return _answered(request, done, {})

    async def _begin(self, request: Request, caller: Caller, key: str) -> Begun | Answer:
        body = await request.body()
        digest = hashlib.sha256(request.url.query.encode() + b"\0" + body).hexdigest()
        asked = Asked(caller.project, key, f"{request.method} {request.url.path}", digest)
        match await self._tasks.run(lambda: self._keys.begin(asked)):
            case AnotherBody():
                raise Problem(
                    UNPROCESSABLE,
                    "key-used",
                    f"Idempotency-Key {key} was sent with another request before: take a new one for a new request",
                )
            case InProgress(seconds=seconds):
                raise Problem(
                    409,
                    "in-progress",
                    f"another request with Idempotency-Key {key} is at work: send it again in a moment",
                    headers={"Retry-After": str(min(5, ceil(seconds)))},
                )
            case answer:
                return answer

    def _act(self, begun: Begun | None, act: Callable[[], Done]) -> Done:
        with self._database.transaction():
            done = act()
            answer = Answer(done.status, dict(done.headers), orjson.dumps(done.document))
            if begun is not None and not self._keys.finish(begun, answer):
                raise Problem(409, "in-progress", "this request took too long, and another one with its key took over")
            return done


_REPLAYED = "Idempotency-Replayed"


def _answered(request: Request, done: Done, more: Mapping[str, str]) -> Response:
    answer = bodies.answer(request, done.document, done.status)
    answer.headers.update({**done.headers, **more})
    return answer
