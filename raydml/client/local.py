"""A folder in, the API over it in this process: the application on an event loop of its own, without a socket.

httpx2's ASGITransport reads whole answers before it hands out the first byte; here they are handed out as they come.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, ExitStack
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from raydml.client.exchange import Exchange

T = TypeVar("T")
ERRORS = 40  # the level of the log lines that a library writes


class Local:
    """The application of one folder, running until it is closed; any thread and any event loop may ask it."""

    def __init__(self, home: Path) -> None:
        """`home`: what RAYDML_HOME is to a server. Raises RaydmlError where it cannot start there."""
        import structlog

        from api import Settings, create_app
        from api.logs import Stderr

        if not structlog.is_configured():
            structlog.configure(
                wrapper_class=structlog.make_filtering_bound_logger(ERRORS),
                logger_factory=structlog.WriteLoggerFactory(Stderr()),  # type: ignore[arg-type]
            )
        self.settings = Settings(home=home, log_level="warning")
        self.app = create_app(self.settings)
        self.loop = asyncio.new_event_loop()
        stopping, started = asyncio.Event(), Future[None]()
        living = _live(self.app.router.lifespan_context(self.app), stopping, started)
        thread = threading.Thread(target=_run, args=(self.loop, living), name="raydml-local", daemon=True)
        thread.start()
        started.result()
        self._ending = ExitStack()
        self._ending.callback(_stop, self.loop, stopping, thread)
        self._supervising = not self.settings.supervise
        self.close = weakref.finalize(self, self._ending.close)  # at the latest when Python ends

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Do it on the application's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    async def begin(self, request: httpx2.Request, body: bytes) -> Exchange:
        """Ask; back when the head of the answer is there. On the application's loop.

        The first request about a job starts the process that brings jobs to their end, and its Ray.
        """
        if not self._supervising and _about_a_job(request):
            from api.keeping import supervised

            self._supervising = True
            self._ending.callback(supervised(self.settings))
        exchange = Exchange(self.app, request, body)
        try:
            await asyncio.shield(exchange.head)  # the application goes on, and sets it, though nobody waits
        except asyncio.CancelledError:  # whoever asked gave up
            await exchange.leave()
            raise
        return exchange


class Transport(httpx2.BaseTransport):
    """For a client that blocks."""

    def __init__(self, local: Local) -> None:
        self.local = local

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """The application's answer, its body still to be read."""
        seconds = _seconds(request)
        exchange = self.wait(self.local.begin(request, request.read()), seconds)
        status, headers = exchange.head.result()
        return httpx2.Response(status, headers=headers, stream=Body(self, exchange, seconds))

    def wait(self, work: Coroutine[Any, Any, T], seconds: float | None) -> T:
        """What the work comes to. Raises httpx2.ReadTimeout."""
        future = self.local.submit(work)
        try:
            return future.result(seconds)
        except TimeoutError:
            raise httpx2.ReadTimeout(f"nothing came for {seconds:g} s") from None
        finally:
            future.cancel()

    def close(self) -> None:
        """Stop the application."""
        self.local.close()


class Body(httpx2.SyncByteStream):
    """The body of an answer, as it comes."""

    def __init__(self, transport: Transport, exchange: Exchange, seconds: float | None) -> None:
        self.transport, self.exchange, self.seconds = transport, exchange, seconds

    def __iter__(self) -> Iterator[bytes]:
        while (part := self.transport.wait(self.exchange.next(), self.seconds)) is not None:
            yield part

    def close(self) -> None:
        """Read no more of it."""
        self.transport.wait(self.exchange.leave(), None)


class AsyncTransport(httpx2.AsyncBaseTransport):
    """For a client on another event loop."""

    def __init__(self, local: Local) -> None:
        self.local = local

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """The application's answer, its body still to be read."""
        seconds = _seconds(request)
        exchange = await self.wait(self.local.begin(request, await request.aread()), seconds)
        status, headers = exchange.head.result()
        return httpx2.Response(status, headers=headers, stream=AsyncBody(self, exchange, seconds))

    async def wait(self, work: Coroutine[Any, Any, T], seconds: float | None) -> T:
        """What the work comes to. Raises httpx2.ReadTimeout."""
        try:
            return await asyncio.wait_for(asyncio.wrap_future(self.local.submit(work)), seconds)
        except TimeoutError:
            raise httpx2.ReadTimeout(f"nothing came for {seconds:g} s") from None

    async def aclose(self) -> None:
        """Stop the application."""
        await asyncio.to_thread(self.local.close)


class AsyncBody(httpx2.AsyncByteStream):
    """The body of an answer, as it comes."""

    def __init__(self, transport: AsyncTransport, exchange: Exchange, seconds: float | None) -> None:
        self.transport, self.exchange, self.seconds = transport, exchange, seconds

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (part := await self.transport.wait(self.exchange.next(), self.seconds)) is not None:
            yield part

    async def aclose(self) -> None:
        """Read no more of it."""
        await self.transport.wait(self.exchange.leave(), None)


def _about_a_job(request: httpx2.Request) -> bool:
    """Whether it makes a job or names one; lists and plans need nobody to run them."""
    path = request.url.path
    made = request.method == "POST" and path in ("/v1/jobs", "/v1/sweeps")
    return made or path.startswith(("/v1/jobs/", "/v1/sweeps/"))


def _seconds(request: httpx2.Request) -> float | None:
    """How long the application may be silent."""
    seconds: float | None = request.extensions.get("timeout", {}).get("read")
    return seconds


async def _live(lifespan: AbstractAsyncContextManager[Any], stopping: asyncio.Event, started: Future[None]) -> None:
    """From start to stop of the application; what is under way then is broken off."""
    try:
        async with lifespan:
            started.set_result(None)
            await stopping.wait()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
    except Exception as error:
        if started.done():
            raise
        started.set_exception(error)


def _run(loop: asyncio.AbstractEventLoop, living: Coroutine[Any, Any, None]) -> None:
    """The application's thread."""
    try:
        loop.run_until_complete(living)
    finally:
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop, stopping: asyncio.Event, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(stopping.set)
    thread.join()
