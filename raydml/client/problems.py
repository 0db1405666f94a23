"""An answer that refuses, or no answer -> the error of raydml's tree, with the server's words and the request's id."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

import httpx2

from raydml.client.retries import UNSENT, retry_after
from raydml.client.steps import Answer, Request
from raydml.errors import (
    AccessDenied,
    Conflict,
    NotFound,
    RequestRefused,
    ServerBusy,
    ServerFailed,
    ServiceError,
    Unreachable,
)

BY_STATUS: dict[int, type[ServiceError]] = {
    401: AccessDenied,
    403: AccessDenied,
    404: NotFound,
    409: Conflict,
    410: NotFound,
    412: Conflict,
    429: ServerBusy,
    503: ServerBusy,
}


def refusal(answer: Answer) -> ServiceError:
    """The error of the answer; `data`: status, problem, request_id, errors and retry_after, where they are known."""
    problem = _problem(answer)
    default = RequestRefused if 400 <= answer.status < 500 else ServerFailed
    facts = {
        "status": answer.status,
        "problem": str(problem.get("type", "")).rpartition(":")[2] or None,
        "request_id": problem.get("request_id") or answer.headers.get("x-request-id"),
        "errors": problem.get("errors") or [],
        "retry_after": retry_after(answer),
    }
    message = str(problem.get("detail") or _words(answer))
    if answer.status >= 500 and facts["request_id"]:
        message = f"{message} (request {facts['request_id']})"
    return BY_STATUS.get(answer.status, default)(message, **facts)


def unreachable(request: Request, error: httpx2.TransportError | None) -> Unreachable:
    """The error of a request that got no whole answer; of one that broke off silently where `error` is None."""
    url = request.path if error is None else str(error.request.url)
    why = str(error) or type(error).__name__ if error is not None else "the answer broke off"
    sent = not isinstance(error, UNSENT)
    known = "it may have been done" if sent and request.method != "GET" else "nothing was done"
    way_out = "" if sent else "; is `raydml serve` running there? url= or RAYDML_URL says where to ask"
    return Unreachable(f"{request.method} {url}: {why}: {known}{way_out}", url=url, sent=sent)


def _problem(answer: Answer) -> dict[str, Any]:
    try:
        document = json.loads(answer.content)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _words(answer: Answer) -> str:
    """For an answer that is not our server's: of a proxy, say."""
    known = answer.status in HTTPStatus._value2member_map_
    phrase = HTTPStatus(answer.status).phrase if known else "an unknown status"
    said = answer.content[:200].decode(errors="replace").strip()
    request = answer.request
    return f"{request.method} {request.path} was answered {answer.status} {phrase}" + (f": {said}" if said else "")
