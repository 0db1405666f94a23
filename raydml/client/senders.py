"""Who takes the steps: over httpx2, one that blocks and one that is awaited; nothing else here comes in two kinds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import aclosing, closing
from typing import Any, TypeVar

import httpx2

from raydml.client.retries import Retries
from raydml.client.steps import Answer, Connect, Give, NextBytes, NextEvent, Pause, Plan, Request, Send, Step, Steps

T = TypeVar("T")


class Sender:
    """Blocks; threads may share it."""

    def __init__(self, http: httpx2.Client, retries: Retries) -> None:
        self.http = http
        self.retries = retries

    def run(self, plan: Plan[T]) -> T:
        """The one result of the plan."""
        with closing(self.iterate(plan)) as items:
            return next(items)

    def iterate(self, plan: Plan[T]) -> Generator[T]:
        """The items of the plan, as they come."""
        connection = Connection(self.http)
        steps, reply, error = plan.steps(self.retries), None, None
        try:
            while (step := advance(steps, reply, error)) is not None:
                reply = error = None
                if isinstance(step, Give):
                    yield step.item
                    continue
                try:
                    reply = connection.take(step)
                except httpx2.TransportError as caught:
                    error = caught
        finally:
            steps.close()
            connection.close()


class Connection:
    """What is open while a plan is at work: the body of one answer at most."""

    def __init__(self, http: httpx2.Client) -> None:
        self.http = http
        self.response: httpx2.Response | None = None
        self.parts: Iterator[Any] = iter(())

    def take(self, step: Step) -> Any:
        """The result of one step. Raises httpx2.TransportError."""
        match step:
            case Pause(seconds):
                return time.sleep(seconds)
            case Send(request):
                response = self.http.send(built(self.http, request))
                return answer_of(request, response, response.content)
            case Connect(request, events):
                self.close()
                self.response = self.http.send(built(self.http, request), stream=True)
                if not self.response.is_success:
                    return answer_of(request, self.response, self.response.read())
                self.parts = iter(httpx2.EventSource(self.response) if events else self.response.iter_raw())
                return answer_of(request, self.response)
            case NextEvent() | NextBytes():
                return next(self.parts, None)

    def close(self) -> None:
        """Leave the answer that was being read."""
        if self.response is not None:
            self.response.close()


class AsyncSender:
    """Is awaited; the tasks of one event loop may share it."""

    def __init__(self, http: httpx2.AsyncClient, retries: Retries) -> None:
        self.http = http
        self.retries = retries

    async def run(self, plan: Plan[T]) -> T:
        """The one result of the plan."""
        async with aclosing(self.iterate(plan)) as items:
            return await anext(items)

    async def iterate(self, plan: Plan[T]) -> AsyncGenerator[T]:
        """The items of the plan, as they come."""
        connection = AsyncConnection(self.http)
        steps, reply, error = plan.steps(self.retries), None, None
        try:
            while (step := advance(steps, reply, error)) is not None:
                reply = error = None
                if isinstance(step, Give):
                    yield step.item
                    continue
                try:
                    reply = await connection.take(step)
                except httpx2.TransportError as caught:
                    error = caught
        finally:
            steps.close()
            await connection.close()


class AsyncConnection:
    """What is open while a plan is at work: the body of one answer at most."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self.http = http
        self.response: httpx2.Response | None = None
        self.parts: AsyncIterator[Any] | None = None

    async def take(self, step: Step) -> Any:
        """The result of one step. Raises httpx2.TransportError."""
        match step:
            case Pause(seconds):
                return await asyncio.sleep(seconds)
            case Send(request):
                response = await self.http.send(built(self.http, request))
                return answer_of(request, response, response.content)
            case Connect(request, events):
                await self.close()
                self.response = await self.http.send(built(self.http, request), stream=True)
                if not self.response.is_success:
                    return answer_of(request, self.response, await self.response.aread())
                self.parts = aiter(httpx2.EventSource(self.response) if events else self.response.aiter_raw())
                return answer_of(request, self.response)
            case NextEvent() | NextBytes():
                assert self.parts is not None
                return await anext(self.parts, None)

    async def close(self) -> None:
        """Leave the answer that was being read."""
        if self.response is not None:
            await self.response.aclose()


def advance(steps: Steps[None], reply: Any, error: Exception | None) -> Step | None:
    """The next step, given the result of the last one or why it failed; None when there are no more."""
    try:
        return steps.send(reply) if error is None else steps.throw(error)
    except StopIteration:
        return None


def built(http: httpx2.Client | httpx2.AsyncClient, request: Request) -> httpx2.Request:
    """The request with the client's URL, key and timeouts."""
    timeout = http.timeout.as_dict() | ({} if request.seconds is None else {"read": request.seconds})
    return http.build_request(
        request.method,
        request.path,
        headers=request.headers,
        content=request.content,
        timeout=httpx2.Timeout(**timeout),
    )


def answer_of(request: Request, response: httpx2.Response, content: bytes = b"") -> Answer:
    """The answer as a value; without its body where that is still to come."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(request, response.status_code, headers, content)
