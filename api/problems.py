"""Errors -> `application/problem+json` (RFC 9457): the same document for every status, with the request's id.

A RaydmlError keeps its message, which shows the numbers and the way out. Any other error is a 500 that says nothing of
its cause: the traceback goes to the log, under the same request id.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import orjson
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from raydml.errors import (
    CheckpointError,
    CollectionBusy,
    CollectionDamaged,
    CollectionError,
    DataError,
    JobChanged,
    JobConflict,
    JobError,
    JobNotFound,
    ModelMismatch,
    QuotaExceeded,
    RaydmlError,
    RecordConflict,
    RecordError,
    RecordNotFound,
    ResourceError,
    RunError,
    RunExists,
    SpecError,
)

log = structlog.get_logger()
MEDIA_TYPE = "application/problem+json"
MALFORMED, UNPROCESSABLE, TOO_LARGE, UNSUPPORTED, BUSY = 400, 422, 413, 415, 429

# The status of each error that raydml raises on purpose; of several that fit, the most special one counts.
STATUS: dict[type[RaydmlError], int] = {
    RaydmlError: 500,
    SpecError: 422,
    DataError: 422,
    ResourceError: 507,
    RunError: 409,
    RunExists: 409,
    JobError: 409,
    JobNotFound: 404,
    JobConflict: 409,
    JobChanged: 412,
    RecordError: 409,
    RecordNotFound: 404,
    RecordConflict: 409,
    QuotaExceeded: 409,
    CheckpointError: 500,
    CollectionError: 422,
    CollectionBusy: 503,
    CollectionDamaged: 500,
    ModelMismatch: 409,
}


class ProblemDocument(BaseModel):
    """The body of every error."""

    type: str = Field(description="names the kind of problem", examples=["urn:raydml:problem:model-mismatch"])
    title: str = Field(description="the status in words")
    status: int = Field(description="the HTTP status", examples=[409])
    detail: str = Field(description="what is wrong, with the numbers, and the way out")
    instance: str = Field(description="the path that was asked for")
    request_id: str = Field(description="the X-Request-Id of this answer, and of the server's log lines")
    errors: list[dict[str, Any]] = Field(default=[], description="each mistake in the request: path and message")


class Problem(HTTPException):
    """An answer that refuses; `kind` is the last part of its type, `errors` names each mistake.

    An HTTPException, because FastAPI lets only these pass while it reads a body.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        errors: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(status, detail, dict(headers or {}))
        self.kind = kind
        self.errors = errors or []


def of(error: Exception) -> Problem:
    """The problem that an error is to the client."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestValidationError):
        return mistakes(error.errors())
    if isinstance(error, HTTPException):
        phrase = HTTPStatus(error.status_code).phrase
        detail = error.detail if error.detail != phrase else _DETAILS.get(error.status_code, phrase)
        return Problem(error.status_code, _kebab(phrase), detail, headers=error.headers)
    if isinstance(error, RaydmlError):
        return _of_raydml(error)
    return Problem(500, "internal", "the server failed; its log says why, under this request's id")


def refuse(error: Exception, path: str, request_id: str) -> Response:
    """The error as an answer; one that is the server's own failure is logged with its traceback."""
    problem = of(error)
    if problem.status_code >= 500 and problem.status_code != 503:  # which passes by itself
        log.error("request failed", path=printable(path), exc_info=error)
    phrase = HTTPStatus(problem.status_code).phrase
    document = {
        "type": f"urn:raydml:problem:{problem.kind}",
        "title": phrase,
        "status": problem.status_code,
        "detail": problem.detail,
        "instance": path,
        "request_id": request_id,
        **({"errors": problem.errors} if problem.errors else {}),
    }
    return Response(orjson.dumps(document), problem.status_code, problem.headers, media_type=MEDIA_TYPE)


def printable(path: str) -> str:
    """A path for the log: no line ends and no control characters of the client's, and not endless."""
    return quote(path[:500], safe="/:~")


def install(app: FastAPI) -> None:
    """Let the application answer its errors so; what it does not expect passes on, to the envelope."""

    async def answer(request: Request, error: Exception) -> Response:
        return refuse(error, request.url.path, request.scope["request_id"])

    for kind in (RaydmlError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, answer)


_DETAILS = {
    404: "there is nothing at this path; /openapi.json lists all paths",
    405: "this path does not take that method; the header Allow says which it takes",
}


def mistakes(errors: Any) -> Problem:
    """The problem of a document that pydantic refused, with each mistake's path."""
    found = [
        {"path": ".".join(map(str, error["loc"])), "message": str(error["msg"]).removeprefix("Value error, ")}
        for error in errors
    ]
    detail = "; ".join(f"{each['path']}: {each['message']}" for each in found[:10])
    return Problem(UNPROCESSABLE, "invalid-request", detail, errors=found[:100])


def _of_raydml(error: RaydmlError) -> Problem:
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    headers = {"Retry-After": "1"} if isinstance(error, CollectionBusy) else {}
    return Problem(status, _kebab(type(error).__name__), error.message, headers=headers)


def _kebab(words: str) -> str:
    """`ModelMismatch` or `Not Found` as model-mismatch, not-found."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"(?<=[a-z])(?=[A-Z])", "-", words).lower()).strip("-")
