"""An open file and a request -> an answer: whole or a range of bytes, with its digest (RFC 9110, RFC 9530)."""

from __future__ import annotations

import base64
import mimetypes
import re
from collections.abc import AsyncIterator
from pathlib import PurePosixPath
from urllib.parse import quote

from anyio import to_thread
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from api.confined import OpenFile
from api.preconditions import etag, unchanged
from api.problems import Problem

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_CHUNK = 1 << 18  # bytes sent at a time
# Types that a browser shows without running anything; all else is bytes.
_SHOWN = {"image/png", "application/json", "text/plain", "text/csv"}
_TEXTS = {".log", ".md", ".yaml", ".yml"}
_LINES = {".jsonl": "application/x-ndjson"}


class FileAnswer(StreamingResponse):
    """Sends a part of a file, and closes it however that ends."""

    def __init__(self, file: OpenFile, start: int, stop: int, status: int, headers: dict[str, str]) -> None:
        self._file = file
        super().__init__(self._chunks(start, stop), status, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()

    async def _chunks(self, start: int, stop: int) -> AsyncIterator[bytes]:
        while start < stop:
            chunk = await to_thread.run_sync(self._file.read, start, min(_CHUNK, stop - start))
            if not chunk:
                return  # the file became shorter: the client sees too few bytes
            yield chunk
            start += len(chunk)


def file_answer(
    file: OpenFile, digest: bytes, path: str, part: str | None, of: str | None, seen: str | None
) -> Response:
    """The file, the part of it that was asked for (Range, If-Range), or 304 (If-None-Match). Raises Problem 416.

    The answer closes the file.
    """
    name = digest.hex()
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": etag(name),
        "Repr-Digest": f"sha-256=:{base64.b64encode(digest).decode()}:",
        "Content-Type": content_type(path),
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(PurePosixPath(path).name, safe='')}",
        "X-Content-Type-Options": "nosniff",
    }
    if unchanged(seen, name):
        file.close()
        return Response(None, 304, {"ETag": etag(name)})
    bounds = asked_range(part, file.size) if of in (None, etag(name)) else None  # of another file no part is of use
    if bounds is None:
        return FileAnswer(file, 0, file.size, 200, headers | {"Content-Length": str(file.size)})
    start, stop = bounds
    if start >= stop:
        file.close()
        raise Problem(
            416,
            "range-not-satisfiable",
            f"the file has {file.size} bytes: ask for a range among them",
            headers={"Content-Range": f"bytes */{file.size}"},
        )
    said = {"Content-Length": str(stop - start), "Content-Range": f"bytes {start}-{stop - 1}/{file.size}"}
    return FileAnswer(file, start, stop, 206, headers | said)


def asked_range(header: str | None, size: int) -> tuple[int, int] | None:
    """(start, stop) of a range, empty where nothing lies in it; None for the whole: several ranges are that, too."""
    match = _RANGE.fullmatch((header or "").strip())
    if match is None or match[1] == match[2] == "":
        return None
    if not match[1]:
        return max(0, size - int(match[2])), size if int(match[2]) else 0
    if match[2] and int(match[2]) < int(match[1]):
        return None  # which is no range
    return int(match[1]), min(size, int(match[2]) + 1) if match[2] else size


def content_type(path: str) -> str:
    """What the file is, where a browser may know it."""
    suffix = PurePosixPath(path).suffix.lower()
    if suffix in _TEXTS:
        return "text/plain; charset=utf-8"
    guessed = _LINES.get(suffix) or mimetypes.guess_type(path)[0]
    return guessed if guessed in _SHOWN | set(_LINES.values()) else "application/octet-stream"
