"""One request to an ASGI application and its answer, part by part, as the application sends it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

import httpx2

Message: TypeAlias = MutableMapping[str, Any]
Application: TypeAlias = Callable[..., Awaitable[None]]
Head: TypeAlias = tuple[int, list[tuple[bytes, bytes]]]  # status and headers
WAITING = 16  # parts of an answer that may wait for their reader


class Exchange:
    """Made and used on the event loop of the application."""

    def __init__(self, app: Application, request: httpx2.Request, body: bytes) -> None:
        """Begins at once. `body` is the request's, read."""
        self.body: bytes | None = body
        self.head: asyncio.Future[Head] = asyncio.get_running_loop().create_future()
        self.parts: asyncio.Queue[bytes | httpx2.TransportError | None] = asyncio.Queue(WAITING)
        self.left = asyncio.Event()
        self.complete = False
        self.task = asyncio.create_task(self._run(app, _scope(request)))

    async def next(self) -> bytes | None:
        """The next part of the answer's body, None at its end. Raises httpx2.TransportError where it broke off."""
        part = await self.parts.get()
        if isinstance(part, httpx2.TransportError):
            raise part
        return part

    async def leave(self) -> None:
        """Read no more: the application is told that its client is gone."""
        self.left.set()
        while not self.parts.empty():
            self.parts.get_nowait()

    async def _run(self, app: Application, scope: Message) -> None:
        why = "the application ended before its answer did"
        try:
            await app(scope, self._receive, self._send)
        except Exception as error:  # the application has logged it; whoever asks must not wait for ever
            why = f"the application failed: {type(error).__name__}"
        finally:
            if not self.complete:
                await self._break_off(httpx2.RemoteProtocolError(why))

    async def _break_off(self, error: httpx2.TransportError) -> None:
        if self.head.done():
            await self._put(error)
        else:
            self.head.set_exception(error)

    async def _receive(self) -> Message:
        if self.body is not None:
            body, self.body = self.body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.head.set_result((message["status"], [(name, value) for name, value in message.get("headers", [])]))
            return
        if body := message.get("body"):
            await self._put(body)
        if not message.get("more_body"):
            self.complete = True
            await self._put(None)

    async def _put(self, part: bytes | httpx2.TransportError | None) -> None:
        """Waits for the reader, so that an answer is not held in memory; for nobody once it left."""
        if not self.left.is_set():
            await self.parts.put(part)


def _scope(request: httpx2.Request) -> Message:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "scheme": request.url.scheme,
        "path": request.url.path,
        "raw_path": request.url.raw_path.partition(b"?")[0],
        "query_string": request.url.query,
        "server": (request.url.host, request.url.port),
        "client": ("127.0.0.1", 0),
        "root_path": "",
    }
