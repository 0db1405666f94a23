"""What surrounds every request: its id, the host it is addressed to, a limit on its body, a log line, the last 500."""

from __future__ import annotations

import re
import time
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import TOO_LARGE, Problem, printable, refuse
from api.settings import Settings, is_loopback

HEADER = "X-Request-Id"
_OWN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d+)?")

log = structlog.get_logger()


class Envelope:
    """The outermost middleware of our own."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings

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
            await self.app(scope, _Limited(receive, self.settings.max_body_bytes), answer)
        except Exception as error:  # nobody else is left to answer
            refusal = refuse(error, scope["path"], scope["request_id"])
            if not answer.status:
                await refusal(scope, receive, answer)
        finally:
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
    """`receive`, until the body is longer than the limit: for bodies that do not say their length."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self.receive = receive
        self.limit = limit
        self.count = 0

    async def __call__(self) -> Message:
        message = await self.receive()
        self.count += len(message.get("body", b""))
        if self.count > self.limit:
            raise too_large(self.limit, f"more than {self.limit}")
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
