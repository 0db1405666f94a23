"""Items of a stream -> server-sent events, and an answer that goes on until there are no more (WHATWG HTML, 9.2)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from fastapi import Header, Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

MEDIA_TYPE = "text/event-stream"
HEARTBEAT = b": still here\n\n"
LastEventId = Annotated[
    str | None,
    Header(
        alias="Last-Event-ID",
        pattern=r"^\d{1,18}$",
        description="the id of the last event that came: the stream goes on behind it; counts before `after`",
    ),
]


@dataclass(frozen=True)
class Item:
    """One item of a stream: its id, which grows along the stream, and what it says."""

    id: int
    document: Mapping[str, Any]

    def frame(self) -> bytes:
        """As an event without a name, so that `onmessage` of a browser is called."""
        return b"id: %d\ndata: %b\n\n" % (self.id, orjson.dumps(self.document))


def opening(seconds: float) -> bytes:
    """The first words: after how long a client should come again that was cut off."""
    return b"retry: %d\n\n" % round(seconds * 1000)


def end(document: Mapping[str, Any]) -> bytes:
    """The last words of a stream that has ended: do not come again."""
    return b"event: end\ndata: %b\n\n" % orjson.dumps(document)


STOPPING = b'event: stopping\ndata: {"detail":"the server stops: come again behind the last id"}\n\n'
"""The last words of a stream that has not ended, from a server that has to."""


def wanted(request: Request) -> bool:
    """Whether the client asks for events rather than for a page."""
    return MEDIA_TYPE in request.headers.get("accept", "")


class EventStream(StreamingResponse):
    """An answer of frames; gives back what they hold, however it ends."""

    media_type = MEDIA_TYPE

    def __init__(self, frames: AsyncGenerator[bytes]) -> None:
        super().__init__(frames, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, until the stream ends or the client goes."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._frames.aclose()
