"""Whatever openapi.json allows is sent to every operation, and much that it does not: no 5xx, nothing undocumented."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import structlog
from fastapi.responses import Response
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.python.asgi import ASGIClient
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api import Settings, create_app
from api.openapi import COMMITTED
from raydml.jobs.changes import move
from raydml.jobs.store import JobStore
from raydml.jobs.tables import JobRow
from tests.api.test_access import key
from tests.api.test_models import finished

pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]
URL = "http://127.0.0.1"
PATIENCE = 600  # seconds: other things may run on the machine
SCHEMA = schemathesis.openapi.from_path(str(COMMITTED))
FOUND = [found.ok() for found in SCHEMA.get_all_operations()]
OPERATIONS = sorted(found.label for found in FOUND)
REFUSING = sorted(found.label for found in FOUND if found.body or any(found.iter_parameters()))
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance,
]  # fmt: skip
SPEC = {"name": "small", "data": {"kind": "glyphs"}, "loss": {"kind": "triplet"}}
FEW = settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
MANY = settings(FEW, max_examples=200, derandomize=False)


@dataclass(frozen=True)
class Service:
    """An application with things in it, a client of it, and the names of these things."""

    client: ASGIClient
    jobs: JobStore
    known: dict[str, list[str]]

    def fresh_jobs(self) -> None:
        """Know a job in each of several states, with files and events, so that there is something to ask for."""
        self.known["job"] = []
        for moves in ((), ("paused",), ("starting", "running"), ("starting", "running", "failed")):
            job = self.jobs.create(SPEC, labels={"a": "b"}).id
            with self.jobs.database.transaction() as session:
                row = session.get_one(JobRow, job)
                row.attempt = len(moves)
                for state in moves:
                    move(session, row, state, row.updated_at, "tested", "by a test")  # type: ignore[arg-type]
            output = self.jobs.log_path(job, len(moves))
            output.parent.mkdir(parents=True)
            output.write_bytes(b"one\ntwo")
            self.known["job"].append(job)
        self.known["path"] = ["attempts/00000/output.log", "attempts/00002/output.log"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("home")
    app = create_app(
        Settings(home=home, heartbeat_seconds=0.01, webhook_hosts=("hooks.example",), requests_per_second=1e6)
    )
    inner = app.state.service

    async def on_one_loop(scope: Any, receive: Any, send: Any) -> None:
        """The application, which begins and ends when it is told to rather than with each test."""
        assert scope["type"] == "http"
        if (told := {"/begin": inner.open, "/end": inner.close}.get(scope["path"])) is None:
            await app(scope, receive, send)
        else:
            if (pending := told()) is not None:
                await pending
            await Response(None, 204)(scope, receive, send)

    configured = structlog.get_config()
    structlog.configure(processors=[_drop])
    with ASGIClient(on_one_loop, URL) as client:
        client.headers.update(key(home, "admin"))
        client.get("/begin")
        service = Service(client, inner.jobs.store, {"name": ["c", "alias"], "snapshot": ["s"], "field": ["f"]})
        _fill(client)
        service.known.update(_records(client, inner.settings.home))
        service.fresh_jobs()
        yield service
        client.get("/end")
    structlog.configure(**configured)


def _drop(*_: Any) -> Any:
    raise structlog.DropEvent


def _fill(client: ASGIClient) -> None:
    """A collection with points, an alias and a snapshot."""
    points = {"ids": [1, "a"], "vectors": [[1, 0], [0, 1]], "payloads": [{"f": 1}, {}]}
    for method, path, body in (
        ("PUT", "c", {"dimension": 2}), ("POST", "c/points", points), ("PUT", "c/indexes/f", None),
        ("PUT", "c/snapshots/s", None),
    ):  # fmt: skip
        assert client.request(method, f"/v1/collections/{path}", json=body).ok
    assert client.post("/v1/aliases:switch", json={"changes": {"alias": "c"}}).ok


def _records(client: ASGIClient, home: Path) -> dict[str, list[str]]:
    """Ids of a data set that is being uploaded, of a model, of a webhook and of another key."""
    finished(home / "runs" / "r")
    upload = {"name": "m", "kind": "csv", "size": 1, "sha256": "0" * 64}
    made = {
        name: client.post(f"/v1/{name}s", json=body)
        for name, body in (
            ("dataset", upload), ("model", {"run": "r"}), ("webhook", {"url": "https://hooks.example/"}),
            ("key", {"scopes": ["jobs:read"]}),
        )
    }  # fmt: skip
    assert all(answer.status_code == 201 for answer in made.values())
    return {name: [answer.json()["id"]] for name, answer in made.items()}


def about_known(case: Any, service: Service, choose: Callable[[list[str]], str | None]) -> None:
    """The request, about something that is there where one is chosen, and with the key of the client."""
    for name in set(case.path_parameters) & set(service.known):
        case.path_parameters[name] = choose(service.known[name]) or case.path_parameters[name]
    case.headers["Authorization"] = service.client.headers["Authorization"]


def ask(service: Service, label: str, mode: GenerationMode, effort: settings) -> None:
    """Send many requests to an operation, most of them about things that are there."""
    operation = SCHEMA.find_operation_by_label(label)
    service.fresh_jobs()

    @effort
    @given(st.data())
    def answers(data: st.DataObject) -> None:
        case = data.draw(operation.as_strategy(generation_mode=mode))
        if data.draw(st.integers(0, 3)):
            about_known(case, service, lambda known: data.draw(st.sampled_from([None, *known, *known])))
        response = case.call(base_url=URL, session=service.client, timeout=PATIENCE)
        case.validate_response(response, checks=CHECKS)

    answers()


@pytest.mark.parametrize("label", OPERATIONS)
def test_requests_that_the_document_allows_are_answered_as_it_says(service: Service, label: str) -> None:
    ask(service, label, GenerationMode.POSITIVE, FEW)


@pytest.mark.parametrize("label", REFUSING)
def test_requests_that_the_document_forbids_are_answered_as_it_says(service: Service, label: str) -> None:
    ask(service, label, GenerationMode.NEGATIVE, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("label", OPERATIONS)
def test_many_requests_that_the_document_allows_are_answered_as_it_says(service: Service, label: str) -> None:
    ask(service, label, GenerationMode.POSITIVE, MANY)


@pytest.mark.slow
@pytest.mark.parametrize("label", REFUSING)
def test_many_requests_that_the_document_forbids_are_answered_as_it_says(service: Service, label: str) -> None:
    ask(service, label, GenerationMode.NEGATIVE, MANY)


def test_chains_of_requests_about_the_same_jobs_are_answered_as_the_document_says(service: Service) -> None:
    labels = [label for label in OPERATIONS if "/v1/jobs" in label]
    done = set()

    @settings(FEW, max_examples=6)
    @given(st.data())
    def answers(data: st.DataObject) -> None:
        service.fresh_jobs()
        for label in data.draw(st.lists(st.sampled_from(labels), min_size=12, max_size=12)):
            case = data.draw(SCHEMA.find_operation_by_label(label).as_strategy())
            about_known(case, service, lambda known: data.draw(st.sampled_from(known)))
            response = case.call(base_url=URL, session=service.client, timeout=PATIENCE)
            case.validate_response(response, checks=CHECKS)
            if response.status_code < 300:
                done.add(label)

    answers()
    assert len(done) > 8, done
