"""Who may do what over HTTP: keys, scopes, projects, rates and the audit log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from api import Settings, create_app, openapi
from api.access import FRESH
from api.scopes import PUBLIC, QUESTIONS, RESOURCES, needed
from api.serve import check_address
from raydml.errors import SpecError
from raydml.jobs.database import Database
from raydml.jobs.keys import create_key, revoke_key
from tests.api.conftest import Connect, client_of

READING = "search:read"
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(100)]


def key(home: Path, *scopes: str, project: str = "default", days: float | None = None) -> dict[str, str]:
    """Headers with a new key."""
    database = Database.at(home)
    with database.transaction() as session:
        _, token = create_key(session, scopes, project, days=days)
    database.close()
    return {"Authorization": f"Bearer {token}"}


class Clock:
    """A clock that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def timed(home: Path, **settings: Any) -> AsyncIterator[tuple[httpx2.AsyncClient, Clock]]:
    """A client of an application whose access goes by the test's clock."""
    app, clock = create_app(Settings(home=home, **settings)), Clock()
    app.state.service.access._clock = clock
    async with app.router.lifespan_context(app), client_of(app) as client:
        yield client, clock


async def test_without_keys_a_person_on_this_machine_may_do_everything_and_with_one_nobody_without_it(
    home: Path,
) -> None:
    async with timed(home) as (client, clock):
        assert (await client.put("/v1/collections/c", json={"dimension": 2})).status_code == 201
        assert (await client.get("/v1/audit")).json()["items"] == []
        headers = key(home, "search:read")
        clock.now += FRESH
        refused = await client.get("/v1/collections")
        assert (refused.status_code, refused.json()["type"]) == (401, "urn:raydml:problem:unauthorised")
        assert refused.headers["www-authenticate"] == 'Bearer realm="raydml"'
        assert (await client.get("/v1/collections", headers=headers)).json()["collections"] == ["c"]
        assert (await client.get("/livez")).status_code == 200


async def test_a_token_that_is_wrong_revoked_or_expired_is_401_and_says_so(home: Path) -> None:
    headers = key(home, "search:read")
    async with timed(home) as (client, clock):
        for wrong in ("Bearer x", "Bearer ", "Basic abc", "raydml", headers["Authorization"] + "x"):
            answer = await client.get("/v1/collections", headers={"Authorization": wrong})
            assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Bearer "), wrong
        assert (await client.get("/v1/collections", headers=headers)).status_code == 200
        database = Database.at(home)
        with database.transaction() as session:
            revoke_key(session, headers["Authorization"].split("_")[1])
        database.close()
        clock.now += FRESH  # for so long at most it is still believed
        answer = await client.get("/v1/collections", headers=headers)
        assert answer.status_code == 401 and 'error="invalid_token"' in answer.headers["www-authenticate"]


async def test_a_key_without_the_scope_is_403_which_names_it_and_does_nothing(connect: Connect, home: Path) -> None:
    reader, writer = key(home, "search:read"), key(home, "collections:write")
    async with connect() as client:
        refused = await client.put("/v1/collections/c", json={"dimension": 2}, headers=reader)
        assert (refused.status_code, refused.json()["type"]) == (403, "urn:raydml:problem:missing-scope")
        assert 'scope="collections:write"' in refused.headers["www-authenticate"]
        assert "the scope collections:write, and the key has search:read" in refused.json()["detail"]
        assert (await client.get("/v1/collections", headers=reader)).json()["collections"] == []
        assert (await client.put("/v1/collections/c", json={"dimension": 2}, headers=writer)).status_code == 201
        query = {"vectors": [[1, 0]], "k": 1}
        assert (await client.post("/v1/collections/c/search", json=query, headers=writer)).status_code == 403
        assert (await client.post("/v1/collections/c/search", json=query, headers=reader)).status_code == 200
        assert (await client.get("/v1/nothing", headers=reader)).status_code == 403  # whatever has no row needs admin
        assert (await client.get("/v1/nothing", headers=key(home, "admin"))).status_code == 404


async def test_collections_aliases_and_snapshots_of_another_project_are_not_there(connect: Connect, home: Path) -> None:
    mine, theirs = key(home, "admin", project="mine"), key(home, "admin", project="theirs")
    async with connect() as client:
        assert (await client.put("/v1/collections/c", json={"dimension": 2}, headers=mine)).status_code == 201
        assert (await client.put("/v1/collections/c/snapshots/s", headers=mine)).status_code == 201
        switch = {"changes": {"live": "c"}}
        assert (await client.post("/v1/aliases:switch", json=switch, headers=mine)).status_code == 200
        for method, path in (
            ("GET", "/v1/collections/c"),
            ("GET", "/v1/collections/live"),
            ("DELETE", "/v1/collections/c"),
            ("DELETE", "/v1/collections/c/snapshots/s"),
            ("GET", "/v1/collections/c/points"),
        ):
            answer = await client.request(method, path, headers=theirs)
            assert answer.status_code == 404, (method, path, answer.text)
        assert (await client.get("/v1/aliases", headers=theirs)).json()["aliases"] == {}
        assert (await client.get("/v1/collections/c/snapshots", headers=theirs)).json()["snapshots"] == []
        assert (await client.put("/v1/collections/c", json={"dimension": 3}, headers=theirs)).status_code == 201
        assert (await client.get("/v1/collections/c", headers=mine)).json()["dimension"] == 2


async def test_a_key_that_asks_too_often_is_429_with_the_seconds_to_wait_and_others_are_not(home: Path) -> None:
    hasty, calm = key(home, "search:read"), key(home, "search:read")
    async with timed(home, requests_per_second=0.5, requests_at_once=2) as (client, clock):
        answers = [await client.get("/v1/collections", headers=hasty) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert (answers[2].headers["retry-after"], answers[2].json()["type"]) == (
            "2",
            "urn:raydml:problem:too-many-requests",
        )
        assert (await client.get("/v1/collections", headers=calm)).status_code == 200
        clock.now += 2
        assert (await client.get("/v1/collections", headers=hasty)).status_code == 200


async def test_the_audit_log_has_who_did_what_with_which_outcome_for_admins_of_the_project(
    connect: Connect, home: Path
) -> None:
    writer, admin = key(home, "collections:write", project="p"), key(home, "admin", project="p")
    other = key(home, "admin", project="q")
    async with connect() as client:
        created = await client.put("/v1/collections/c", json={"dimension": 2}, headers=writer)
        await client.put("/v1/collections/c", json={"dimension": 3}, headers=writer)
        await client.get("/v1/audit", headers=writer)
        await client.get("/v1/collections", headers=admin)
        await client.delete("/v1/collections/a%0Ab", headers=admin)
        page = (await client.get("/v1/audit", params={"limit": 2}, headers=admin)).json()
        rest = (await client.get("/v1/audit", params={"cursor": page["next_cursor"]}, headers=admin)).json()
        assert (await client.get("/v1/audit", headers=other)).json()["items"] == []
    rows = [*page["items"], *rest["items"]]
    assert [(row["action"], row["target"], row["status"]) for row in rows] == [
        ("DELETE", "/v1/collections/a%0Ab", 422),
        ("GET", "/v1/audit", 403),
        ("PUT", "/v1/collections/c", 409),
        ("PUT", "/v1/collections/c", 201),
    ]
    assert rows[3]["request_id"] == created.headers["x-request-id"] and rows[3]["caller"].startswith("key_")
    assert rest["next_cursor"] is None


async def test_a_project_has_as_many_collections_as_it_may(connect: Connect, home: Path) -> None:
    one, other = key(home, "admin", project="one"), key(home, "admin", project="other")
    async with connect(max_collections=1) as client:
        for headers in (one, other):
            assert (await client.put("/v1/collections/a", json={"dimension": 2}, headers=headers)).status_code == 201
        full = await client.put("/v1/collections/b", json={"dimension": 2}, headers=one)
        assert (full.status_code, full.json()["type"]) == (409, "urn:raydml:problem:quota-exceeded")
        assert (await client.put("/v1/collections/a", json={"dimension": 2}, headers=one)).status_code == 200


async def test_a_server_that_others_reach_never_answers_without_a_key(connect: Connect, home: Path) -> None:
    async with connect(host="10.1.2.3") as client:
        assert (await client.get("/v1/collections")).status_code == 401
        headers = {**key(home, "search:read"), "host": "raydml.example:8080"}
        assert (await client.get("/v1/collections", headers=headers)).status_code == 200


def test_a_public_address_needs_a_live_key_before_the_server_listens(home: Path) -> None:
    public = Settings(home=home, host="0.0.0.0")
    with pytest.raises(SpecError, match=r"0\.0\.0\.0 can be reached by other machines, and there is no API key"):
        check_address(public)
    key(home, "admin", days=1e-9)
    with pytest.raises(SpecError, match="no API key"):
        check_address(public)
    check_address(Settings(home=home, host="localhost"))
    key(home, "search:read")
    check_address(public)


def test_every_route_has_its_scope_and_the_questions_among_the_posts_exist() -> None:
    paths = openapi.document(create_app(Settings()))["paths"]
    pairs = {(method.upper(), path) for path, operations in paths.items() for method in operations}
    for _, path in pairs:
        assert path in PUBLIC | {"/metrics"} or path.split("/")[2].partition(":")[0] in RESOURCES, path
    questions = {path.split("/")[-1] for method, path in pairs if method == "POST" and needed(method, path) == READING}
    assert questions == QUESTIONS
    assert needed("POST", "/v1/collections/search/points") == "collections:write"
    assert needed("POST", "/v1/collections/c/snapshots/search") == "collections:write"
