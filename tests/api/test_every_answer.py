"""What holds for every request, whatever it asks for: problems, ids, limits, log lines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from fastapi import FastAPI
from pydantic import BaseModel

from api import Settings, create_app, openapi
from api.serve import check_address
from api.settings import load_settings
from raydml.errors import ModelMismatch, ResourceError, SpecError
from tests.api.conftest import Connect

JSON, TEXT = "application/json", "text/plain"
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


class Numbers(BaseModel):
    """A body of the test's own route."""

    numbers: list[int]


def with_routes(app: FastAPI) -> None:
    """Routes that fail in ways that no route of ours should."""

    @app.get("/fails")
    async def fails() -> None:
        raise ZeroDivisionError("the secret of the server")

    @app.get("/mismatch")
    async def mismatch() -> None:
        raise ModelMismatch("another model")

    @app.get("/full")
    async def full() -> None:
        raise ResourceError("the disk is full")

    @app.post("/numbers")
    async def numbers(body: Numbers) -> int:
        return sum(body.numbers)


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "kind"),
    [
        ("GET", "/nowhere", {}, 404, "not-found"),
        ("DELETE", "/livez", {}, 405, "method-not-allowed"),
        ("POST", "/numbers", {"json": {"numbers": ["x"]}}, 422, "invalid-request"),
        ("POST", "/numbers", {"json": {}}, 422, "invalid-request"),
        ("POST", "/numbers", {"content": b"{", "headers": {"content-type": JSON}}, 422, "invalid-request"),
        ("POST", "/numbers", {"content": b"[]", "headers": {"content-type": TEXT}}, 422, "invalid-request"),
        ("POST", "/numbers", {"content": bytes(2000)}, 413, "content-too-large"),
        ("GET", "/livez", {"headers": {"content-length": "-1"}}, 413, "content-too-large"),
        ("GET", "/livez", {"headers": {"host": "rebound.example"}}, 421, "misdirected"),
        ("GET", "/mismatch", {}, 409, "model-mismatch"),
        ("GET", "/full", {}, 507, "resource-error"),
        ("GET", "/fails", {}, 500, "internal"),
    ],
)  # fmt: skip
async def test_every_error_is_a_problem(
    connect: Connect, method: str, path: str, options: Any, status: int, kind: str
) -> None:
    async with connect(with_routes, max_body_bytes=1024) as client:
        answer = await client.request(method, path, **options)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    document = answer.json()
    assert document["type"] == f"urn:raydml:problem:{kind}"
    assert (document["status"], document["instance"]) == (status, path)
    assert document["detail"]
    assert document["request_id"] == answer.headers["x-request-id"]
    assert "secret" not in answer.text and "Traceback" not in answer.text


async def test_a_body_of_unknown_length_is_refused_once_it_is_too_long(connect: Connect) -> None:
    sent = []

    async def chunks() -> AsyncIterator[bytes]:
        for number in range(100):
            sent.append(number)
            yield bytes(100)

    async with connect(with_routes, max_body_bytes=1024) as client:
        answer = await client.post("/numbers", content=chunks())
    assert (answer.status_code, answer.json()["type"]) == (413, "urn:raydml:problem:content-too-large")
    assert "1024 are taken" in answer.json()["detail"]


async def test_a_mistake_is_named_by_its_path(connect: Connect) -> None:
    async with connect(with_routes) as client:
        answer = await client.post("/numbers", json={"numbers": [1, "two", 3]})
    assert [each["path"] for each in answer.json()["errors"]] == ["body.numbers.1"]


async def test_a_requests_id_is_the_clients_where_it_is_harmless(connect: Connect) -> None:
    async with connect() as client:
        taken = await client.get("/livez", headers={"X-Request-Id": "order-66"})
        made = await client.get("/livez", headers={"X-Request-Id": "a b\tc"})
    assert taken.headers["x-request-id"] == "order-66"
    assert len(made.headers["x-request-id"]) == 32


async def test_each_request_is_one_line_with_its_id_and_a_failure_has_its_traceback_there(connect: Connect) -> None:
    merge = structlog.contextvars.merge_contextvars
    with structlog.testing.capture_logs([merge]) as lines:
        async with connect(with_routes) as client:
            await client.get("/livez")
            await client.get("/fails", headers={"X-Request-Id": "broken"})
    events = [(line["event"], line["request"], line.get("status")) for line in lines[1:3]]
    assert (lines[0]["event"], lines[0]["status"], lines[0]["path"]) == ("request", 200, "/livez")
    assert events == [("request failed", "broken", None), ("request", "broken", 500)]
    assert isinstance(lines[1]["exc_info"], ZeroDivisionError)


async def test_a_path_cannot_forge_log_lines(connect: Connect) -> None:
    with structlog.testing.capture_logs() as lines:
        async with connect() as client:
            await client.get("/a%0Alevel=error%0D%1b[31m")
    assert lines[0]["path"] == "/a%0Alevel%3Derror%0D%1B%5B31m"


async def test_alive_at_once_and_ready_while_the_folder_is_there(connect: Connect, home: Path) -> None:
    async with connect() as client:
        assert (await client.get("/livez")).json() == {"status": "alive"}
        assert (await client.get("/readyz")).json() == {"status": "ready"}
        home.rename(home.with_name("gone"))
        refused = await client.get("/readyz")
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:raydml:problem:not-ready")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.com", ""])
def test_an_address_that_others_can_reach_is_refused_without_keys_with_the_reason(host: str, home: Path) -> None:
    with pytest.raises(SpecError, match="can be reached by other machines, and there is no API key yet"):
        check_address(Settings(home=home, host=host))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_an_address_of_this_machine_alone_is_taken(host: str) -> None:
    check_address(load_settings({"host": host}))


def test_settings_come_from_the_environment_and_unknown_ones_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAYDML_HOME", str(tmp_path / "here"))
    monkeypatch.setenv("RAYDML_MAX_K", "7")
    settings = load_settings({"port": "9000"})
    assert (settings.home, settings.max_k, settings.port) == (tmp_path / "here", 7, 9000)
    with pytest.raises(SpecError, match=r"max_z .*unknown setting; there are home, "):
        load_settings({"max_z": 1})
    with pytest.raises(SpecError, match=r"max_k \(RAYDML_MAX_K\): Input should be greater"):
        load_settings({"max_k": 0})


def test_the_committed_openapi_document_is_current_and_every_error_in_it_a_problem() -> None:
    app = create_app(Settings())
    assert openapi.COMMITTED.read_bytes() == openapi.encoded(app), "run: python -m api"
    document = openapi.document(app)
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names) > 1
    for operation in operations:
        assert operation["description"]
        for status, answer in operation["responses"].items():
            assert (status < "400") or answer == {"$ref": f"#/components/responses/Refused{status}"}
    for answer in document["components"]["responses"].values():
        assert list(answer["content"]) == ["application/problem+json"]
