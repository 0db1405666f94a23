"""/dashboard/: the files of the page, which knows nothing but /v1; read once, and served to whoever reaches the server.

No file is a secret and none depends on who asks: data comes from /v1, with the caller's key.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import RedirectResponse, Response

from api.preconditions import IfNoneMatch, etag, unchanged
from api.problems import Problem
from api.scopes import PAGE

FOLDER = Path(__file__).with_name("dashboard")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".md": "text/plain; charset=utf-8",
    "": "text/plain; charset=utf-8",
}
# Nothing from elsewhere, nothing inline, no evaluated text, no markup from strings, in no frame.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class File:
    """A file of the page."""

    content: bytes
    type: str
    sha256: str


@cache
def files() -> dict[str, File]:
    """Every file of the page by its path below /dashboard/; the empty path is the page itself."""
    found = {
        path.relative_to(FOLDER).as_posix(): _file(path)
        for path in sorted(FOLDER.rglob("*"))
        if path.suffix in TYPES and path.is_file()
    }
    return {**found, "": found["index.html"]}


@router.get("/")
async def root() -> Response:
    """To the page."""
    return RedirectResponse(PAGE, 307)


@router.get(PAGE + "{path:path}")
async def get_file(path: str, seen: IfNoneMatch = None) -> Response:
    """A file of the page."""
    file = files().get(path)
    if file is None:
        raise Problem(404, "not-found", f"the page has no file of this name: it begins at {PAGE}")
    headers = HEADERS | {"ETag": etag(file.sha256)}
    if unchanged(seen, file.sha256):
        return Response(None, 304, headers)
    return Response(file.content, 200, headers, media_type=file.type)


def _file(path: Path) -> File:
    content = path.read_bytes()
    return File(content, TYPES[path.suffix], hashlib.sha256(content).hexdigest())
