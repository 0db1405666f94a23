"""/v1/keys over HTTP."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from raydml.client import Client
from raydml.errors import NotFound, RequestRefused
from tests.api.conftest import Connect
from tests.api.test_access import key

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(100)]
KEYS = "/v1/keys"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_a_key_is_shown_once_works_with_its_scopes_alone_and_no_more_once_revoked(
    connect: Connect, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.access.FRESH", 0.0)  # what the database says is asked anew each time
    admin = key(home, "admin")
    async with connect() as client:
        made = await client.post(KEYS, json={"scopes": ["jobs:read"], "name": "ci", "days": 2}, headers=admin)
        assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
        document, theirs = made.json(), bearer(made.json()["token"])
        assert (document["name"], document["scopes"], document["state"]) == ("ci", ["jobs:read"], "live")
        assert (await client.get("/v1/jobs", headers=theirs)).status_code == 200
        for method, path in (
            ("POST", "/v1/jobs"),
            ("GET", KEYS),
            ("POST", KEYS),
            ("DELETE", f"{KEYS}/{document['id']}"),
        ):
            refused = await client.request(method, path, json={"scopes": ["admin"]}, headers=theirs)
            assert (refused.status_code, refused.json()["type"]) == (403, "urn:raydml:problem:missing-scope"), path
        for shown in (await client.get(KEYS, headers=admin), await client.get(made.headers["location"], headers=admin)):
            assert shown.status_code == 200 and document["token"] not in shown.text and "token" not in shown.text
            assert document["token"].split("_")[2] not in shown.text
        revoked = await client.delete(made.headers["location"], headers=admin)
        assert (revoked.status_code, revoked.json()["state"]) == (200, "revoked")
        assert (await client.get("/v1/jobs", headers=theirs)).status_code == 401
        listed = (await client.get(KEYS, headers=admin)).json()["items"]
        assert [each["state"] for each in listed] == ["live", "revoked"]
    assert not [path for path in home.rglob("*") if path.is_file() and document["token"].encode() in path.read_bytes()]


async def test_keys_of_another_project_are_not_there(connect: Connect, home: Path) -> None:
    ours, theirs = key(home, "admin"), key(home, "admin", project="theirs")
    async with connect() as client:
        made = (await client.post(KEYS, json={"scopes": ["admin"]}, headers=theirs)).json()
        for method in ("GET", "DELETE"):
            answer = await client.request(method, f"{KEYS}/{made['id']}", headers=ours)
            assert (answer.status_code, answer.json()["type"]) == (404, "urn:raydml:problem:record-not-found")
        assert made["id"] not in (await client.get(KEYS, headers=ours)).text
        assert len((await client.get(KEYS, headers=bearer(made["token"]))).json()["items"]) == 2, (
            "of its maker's project"
        )


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"scopes": []},
        {"scopes": ["jobs:everything"]},
        {"scopes": ["admin"], "days": 0},
        {"scopes": ["admin"], "x": 1},
    ],
)
async def test_a_key_of_no_or_unknown_scopes_is_refused(connect: Connect, home: Path, body: object) -> None:
    admin = key(home, "admin")
    async with connect() as client:
        answer: httpx2.Response = await client.post(KEYS, json=body, headers=admin)
        assert (answer.status_code, answer.json()["type"]) == (422, "urn:raydml:problem:invalid-request")
        assert len((await client.get(KEYS, headers=admin)).json()["items"]) == 1


def test_the_client_makes_lists_and_revokes_keys(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDML_SUPERVISE", "false")
    token = key(home, "admin")["Authorization"].removeprefix("Bearer ")
    with Client(local=home, key=token) as client:
        made = client.keys.create(["search:read", "jobs:read"], "reader", days=1)
        assert made.token and made.expires_at and made.scopes == ["jobs:read", "search:read"]
        assert [(each.name, each.token) for each in client.keys.list()] == [("", None), ("reader", None)]
        assert client.keys.revoke(made.id).state == client.keys.get(made.id).state == "revoked"
        with pytest.raises(NotFound):
            client.keys.revoke("key_" + "0" * 26)
        with pytest.raises(RequestRefused):
            client.keys.create([])
