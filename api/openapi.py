"""The application -> openapi.json, with every error as a problem; `python -m api` writes the committed copy."""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api import dataset_documents, documents, job_documents, key_documents, model_documents, webhook_documents
from api.bodies import DOCUMENTS, JSON, MSGPACK
from api.envelope import HEADER
from api.problems import MEDIA_TYPE, ProblemDocument
from api.scopes import PUBLIC, needed

COMMITTED = Path(__file__).with_name("openapi.json")
_EVERYWHERE = (408, 413, 421, 500, 503)  # of any request; what else an operation refuses stands beside it
_GUARDED = (401, 403, 429)  # of any request that needs a key
BODIES = (
    *documents.BODIES,
    *job_documents.BODIES,
    *dataset_documents.BODIES,
    *model_documents.BODIES,
    *webhook_documents.BODIES,
    *key_documents.BODIES,
)

_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "description": "an API key (raydml keys create); none is needed on a loopback address before the first was made",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses=` of an operation that may refuse with these statuses."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def also(status: int, *kinds: str) -> dict[int | str, dict[str, Any]]:
    """`responses=` of an operation that also answers this, without a body or with one of these kinds."""
    content = {kind: {"schema": {"type": "string"}} for kind in kinds}
    return {status: {"description": HTTPStatus(status).phrase, **({"content": content} if kinds else {})}}


def takes(model: type[BaseModel], *kinds: str) -> dict[str, Any]:
    """`openapi_extra=` of an operation that reads its own body: the model, or bytes of the other kinds."""
    reference: dict[str, Any] = {"$ref": f"#/components/schemas/{model.__name__}"}
    bytes_: dict[str, Any] = {"type": "string", "format": "binary"}
    content = {kind: {"schema": reference if kind in DOCUMENTS else bytes_} for kind in kinds or (JSON, MSGPACK)}
    return {"requestBody": {"required": True, "content": content}}


def operation_id(route: APIRoute) -> str:
    """The name of the function that answers."""
    return route.name


def document(app: FastAPI) -> dict[str, Any]:
    """OpenAPI 3.1 of all routes; made once."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = made.setdefault("components", {}).setdefault("schemas", {})
        bodies = [(model, "validation") for model in (*BODIES, ProblemDocument)]
        _, described = models_json_schema(bodies, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
        schemas.update(described["$defs"])
        described_header = {"schema": {"type": "string"}, "description": "names the request in the server's log"}
        made["components"]["headers"] = {HEADER: described_header}
        made["components"]["securitySchemes"] = {"key": _SCHEME}
        answers = made["components"]["responses"] = dict[str, Any]()
        for path, operations in made["paths"].items():
            for method, operation in operations.items():
                guarded = () if path in PUBLIC else _GUARDED
                if guarded:
                    scope = needed(method.upper(), path)
                    operation["security"] = [{"key": [] if scope == "none" else [scope]}]
                for status, answer in refusals(*_EVERYWHERE, *guarded).items():
                    operation["responses"].setdefault(str(status), answer)
                for answer in operation["responses"].values():
                    answer["headers"] = {HEADER: {"$ref": f"#/components/headers/{HEADER}"}}
                operation["responses"] = {
                    status: _shared(int(status), answer, answers) for status, answer in operation["responses"].items()
                }
        app.openapi_schema = made
    return app.openapi_schema


def _shared(status: int, answer: dict[str, Any], answers: dict[str, Any]) -> dict[str, Any]:
    """A refusal by its place among `answers`, where it stands once: every operation has a dozen of them."""
    if status < HTTPStatus.BAD_REQUEST:
        return answer
    name = f"Refused{status}"
    assert answers.setdefault(name, answer) == answer, f"a refusal {status} that differs from the others"
    return {"$ref": f"#/components/responses/{name}"}


def encoded(app: FastAPI) -> bytes:
    """The document as it is committed."""
    return orjson.dumps(document(app), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)
