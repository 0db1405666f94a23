"""What surrounds every request: its id, the host it is addressed to, limits on its body, a log line, the last 500."""

from __future__ import annotations

import asyncio
import re
import time
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.counting import Requests
from api.problems import TOO_LARGE, TOO_SLOW, Problem, printable, refuse
from api.settings import Settings, is_loopback

HEADER = "X-Request-Id"
_OWN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d+)?")

log = structlog.get_logger()


class Envelope:
    """The outermost middleware of our own."""

    def __init__(self, app: ASGIApp, settings: Settings, requests: Requests) -> None:
        self.app = app
        self.settings = settings
        self.requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(HEADER, "")
        scope["request_id"] = given if _OWN_ID.fullmatch(given) else uuid.uuid4().hex
        answer = _Answer(send, scope["request_id"])
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request=scope["request_id"])
        try:
            self._check(headers)
            await self.app(scope, _Limited(receive, self.settings), answer)
        except Exception as error:  # nobody else is left to answer
            refusal = refuse(error, scope["path"], scope["request_id"])
            if not answer.status:
                await refusal(scope, receive, answer)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self.requests.add(scope["method"], route, answer.status, time.perf_counter() - answer.began)
            log.info("request", method=scope["method"], path=printable(scope["path"]), **answer.facts())

    def _check(self, headers: Headers) -> None:
        """What can be refused by its headers alone."""
        host = _HOST.fullmatch(headers.get("host", ""))
        keyed = "authorization" in headers or not is_loopback(self.settings.host)  # which another site's page is not
        if not keyed and (host is None or not is_loopback(host[1])):
            raise Problem(
                421,
                "misdirected",
                f"this server answers for 127.0.0.1 and localhost alone, not for {headers.get('host', '')[:100]!r}: "
                f"a page of another site may not reach it through a name of its own",
            )
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.settings.max_body_bytes:
            raise too_large(self.settings.max_body_bytes, length)


class _Limited:
    """`receive`, until the body is longer than the limit, which not all bodies say before, or takes too long."""

    def __init__(self, receive: Receive, settings: Settings) -> None:
        self.receive = receive
        self.settings = settings
        self.end = asyncio.get_running_loop().time() + settings.body_seconds
        self.count = 0
        self.whole = False

    async def __call__(self) -> Message:
        if self.whole:  # what follows is that the client has gone, at any time
            return await self.receive()
        try:
            async with asyncio.timeout_at(self.end):
                message = await self.receive()
        except TimeoutError:
            raise too_slow(self.settings.body_seconds, self.count) from None
        self.whole = not message.get("more_body", False)
        self.count += len(message.get("body", b""))
        if self.count > self.settings.max_body_bytes:
            raise too_large(self.settings.max_body_bytes, f"more than {self.settings.max_body_bytes}")
        return message


class _Answer:
    """`send`, with the request's id among the headers; remembers the status and counts the bytes."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.send = send
        self.request_id = request_id
        self.began = time.perf_counter()
        self.status = 0
        self.count = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)[HEADER] = self.request_id
        self.count += len(message.get("body", b""))
        await self.send(message)

    def facts(self) -> dict[str, object]:
        """For the log."""
        seconds = round(time.perf_counter() - self.began, 6)
        return {"status": self.status, "bytes": self.count, "seconds": seconds}


def too_large(limit: int, length: str) -> Problem:
    """The body is over the limit; the connection is closed, as the rest of the body is not read."""
    return Problem(
        TOO_LARGE,
        "content-too-large",
        f"the body has {length[:20]} bytes, and {limit} are taken: send fewer points at once, or vectors as binary",
        headers={"Connection": "close"},
    )


def too_slow(seconds: float, count: int) -> Problem:
    """The body did not arrive in time; nothing was done, and the connection is closed."""
    return Problem(
        TOO_SLOW,
        "body-too-slow",
        f"{count} bytes of the body came in {seconds:g} seconds, and then no more: send less at once, or faster",
        headers={"Connection": "close"},
    )
