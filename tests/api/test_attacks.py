"""The attack list: each thing that somebody may try over HTTP, and that it leads nowhere."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog
from fastapi import FastAPI

from api import Settings, create_app, openapi
from api.job_desk import JobDesk
from api.logs import harmless
from api.scopes import PUBLIC, needed
from raydml.jobs.callers import SCOPES
from raydml.jobs.ids import milliseconds
from raydml.jobs.keys import caller_of
from tests.api.conftest import Connect
from tests.api.test_access import key
from tests.api.test_models import finished
from tests.api.test_sweeps import a_sweep

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]
SPEC = {"name": "s", "data": {"kind": "glyphs"}, "loss": {"kind": "triplet"}}
DIGEST = hashlib.sha256(b"").hexdigest()
UPLOAD = {"name": "m", "kind": "archive", "size": 10, "sha256": DIGEST}
HOOK = {"url": "https://hooks.example/"}
OCTETS = {"content-type": "application/octet-stream"}


class Desk:
    """The application's own store of jobs."""

    def __call__(self, app: FastAPI) -> None:
        self.desk: JobDesk = app.state.service.jobs

    def project(self, headers: dict[str, str]) -> str:
        with self.desk.database.reading() as session:
            caller = caller_of(session, headers["Authorization"].split()[1], milliseconds())
        assert caller is not None
        return caller.project


def operations() -> Iterator[tuple[str, str]]:
    """Every operation that needs a key: method and path."""
    for path, methods in openapi.document(create_app(Settings()))["paths"].items():
        if path not in PUBLIC:
            yield from ((method.upper(), path) for method in methods)


# --- traversal --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["%2e%2e", "..%2fx", "%2e%2e%2fx", "%2fetc%2fpasswd", "a%00b", "a\\..\\b", ".hidden"])
async def test_names_and_paths_lead_out_of_no_folder(connect: Connect, home: Path, name: str) -> None:
    secret = home.parent / "x"
    secret.mkdir()
    (secret / "collection.sqlite").write_text("secret")
    finished(home / "runs" / "r")
    desk = Desk()
    async with connect(desk) as client:
        model = (await client.post("/v1/models", json={"run": "r"})).json()["id"]
        job = desk.desk.store.create(SPEC).id
        for path in (
            f"/v1/collections/{name}",
            f"/v1/collections/c/snapshots/{name}",
            f"/v1/models/{model}/files/{name}",
            f"/v1/jobs/{job}/artifacts/{name}",
            f"/v1/datasets/{name}",
        ):
            answer = await client.get(path)
            assert answer.status_code in (404, 405, 422), (path, answer.status_code)
            assert "secret" not in answer.text
        for body in ({"run": name}, {"job": name}):
            assert (await client.post("/v1/models", json=body)).status_code in (409, 422)
        assert (await client.post("/v1/datasets", json={"name": "m", "path": name})).status_code == 422
    assert (secret / "collection.sqlite").read_text() == "secret"


# --- requests to elsewhere --------------------------------------------------------------------------------------------

ELSEWHERE = [
    "http://169.254.169.254/latest/meta-data",
    "https://evil.example/x",
    "file:///etc/passwd",
    "//evil.example/x",
]


@pytest.mark.parametrize("url", ELSEWHERE)
async def test_nothing_is_fetched_from_an_address_that_a_request_names(connect: Connect, url: str) -> None:
    async with connect(webhook_hosts=("hooks.example",)) as client:
        for path, body in (
            ("/v1/webhooks", {"url": url}),
            ("/v1/datasets", {"name": "m", "path": url}),
            ("/v1/datasets:validate", {"data": {"kind": "image_folder", "path": url}}),
            ("/v1/jobs", {"spec": {**SPEC, "data": {"kind": "manifest", "path": url}}}),
            ("/v1/jobs", {"spec": {**SPEC, "model": {"backbone": {"kind": "transformers", "path": url}}}}),
        ):
            answer = await client.post(path, json=body)
            assert answer.status_code == 422, (path, answer.text)


# --- too much ---------------------------------------------------------------------------------------------------------


async def test_what_is_too_large_is_refused_by_its_number(connect: Connect) -> None:
    async with connect(max_body_bytes=100_000, dataset_part_bytes=1 << 20) as client:
        assert (await client.post("/v1/datasets", content=bytes(100_001))).status_code == 413
        long = {"spec": {**SPEC, "name": "x" * 70_000}}
        assert (await client.post("/v1/jobs", json=long)).status_code == 413
        made = (await client.post("/v1/datasets", json={**UPLOAD, "size": 200_000})).json()
        assert made["part_bytes"] == 100_000  # what fits into a body
        path = f"/v1/datasets/{made['id']}/parts/0"
        part = await client.put(path, params={"sha256": DIGEST}, content=bytes(99_999), headers=OCTETS)
        assert part.status_code == 422 and "100000 bytes, and 99999 were sent" in part.json()["detail"]
        for size in (0, -1, 1 << 60, "1", 1.5, None):
            assert (await client.post("/v1/datasets", json={**UPLOAD, "size": size})).status_code == 422
        deep = "[" * 50_000 + "]" * 50_000
        assert (
            await client.post("/v1/jobs", content=deep, headers={"content-type": "application/json"})
        ).status_code == 400


async def test_a_zip_bomb_ends_as_a_data_set_that_failed_and_nothing_of_it_stays(connect: Connect, home: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/zeros.png", bytes(1 << 26))  # some 1000 : 1
    content = file.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    async with connect() as client:
        made = await client.post("/v1/datasets", json={**UPLOAD, "size": len(content), "sha256": digest})
        path = f"/v1/datasets/{made.json()['id']}"
        await client.put(f"{path}/parts/0", params={"sha256": digest}, content=content, headers=OCTETS)
        assert (await client.post(f"{path}/complete")).status_code == 202
        while (found := (await client.get(path)).json())["state"] == "checking":
            await asyncio.sleep(0.1)
    assert found["state"] == "failed" and "at most 200 times its size" in found["problem"]
    assert not list(home.glob("datasets/*"))


# --- headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a\r\nSet-Cookie: x=1", "a\nX-Evil: 1", "a\0b", 'a"; filename="b'])
async def test_no_text_of_a_client_becomes_a_header(connect: Connect, text: str) -> None:
    async with connect() as client:
        for body in ({**UPLOAD, "name": text}, {**UPLOAD, "kind": text}, {**UPLOAD, "sha256": text}):
            answer = await client.post("/v1/datasets", json=body)
            assert answer.status_code == 422 and not _forged(answer)
        answer = await client.post("/v1/jobs", json={"spec": SPEC, "name": text, "labels": {text: text}})
        assert answer.status_code == 422 and not _forged(answer)
        quoted = httpx2.QueryParams({"x": text})
        for path in (f"/v1/nothing?{quoted}", f"/v1/collections/{str(quoted)[2:]}"):
            assert not _forged(await client.get(path))


def _forged(answer: httpx2.Response) -> bool:
    names = {name.lower() for name in answer.headers}
    return bool(names & {"set-cookie", "x-evil"}) or any("\n" in value for value in answer.headers.values())


# --- other owners, missing scopes -------------------------------------------------------------------------------------

BODIES: dict[str, Any] = {
    "fork": {},
    "resize": {"workers": 1},
    "promote": {"alias": "production"},
    "search": {"vectors": [[1, 0]], "k": 1},
    "search:batch": {"searches": [{"vectors": [[1, 0]], "k": 1}]},
    "recommend": {"positives": [1], "k": 1},
    "points": {"ids": [1], "vectors": [[1, 0]]},
    "points:get": {"ids": [1]},
    "points:delete": {"ids": [1]},
    "points:payload": {"ids": [1], "payload": {"a": 1}},
    "classify": {"vectors": [[1, 0]], "field": "a"},
    "calibrate": {"field": "a", "kind": "pairs", "false_accept_rate": 0.1},
    "verify": {"pairs": [[1, 1]], "threshold": {"kind": "pairs", "field": "a", "score": 0.5}},
    "identify": {"vectors": [[1, 0]], "threshold": {"kind": "identify", "field": "a", "score": 0.5}},
    "duplicates": {"threshold": 0.5},
    "restore": {"to": "d"},
}


async def test_ids_of_another_project_are_not_there_for_any_operation(connect: Connect, home: Path) -> None:
    mine, theirs = key(home, "admin", project="mine"), key(home, "admin", project="theirs")
    desk = Desk()
    async with connect(desk, webhook_hosts=("hooks.example",)) as client:
        await client.put("/v1/collections/c", json={"dimension": 2}, headers=mine)
        await client.put("/v1/collections/c/snapshots/s", headers=mine)
        finished(home / "projects" / desk.project(mine) / "runs" / "r")
        sweep = desk.desk.store.create(a_sweep(), project=desk.project(mine)).id
        ids = {
            "job": desk.desk.store.create(SPEC, project=desk.project(mine)).id,
            "dataset": (await client.post("/v1/datasets", json=UPLOAD, headers=mine)).json()["id"],
            "model": (await client.post("/v1/models", json={"run": "r"}, headers=mine)).json()["id"],
            "webhook": (await client.post("/v1/webhooks", json=HOOK, headers=mine)).json()["id"],
            "name": "c", "snapshot": "s", "field": "a", "number": "0", "path": "README.md", "shadow_name": "younger",
        }  # fmt: skip
        tried = 0
        for method, path in operations():
            if not any(f"{{{name}}}" in path for name in ("job", "dataset", "model", "webhook", "name")):
                continue
            if (method, path) in (("PUT", "/v1/collections/{name}"), ("GET", "/v1/collections/{name}/snapshots")):
                continue  # makes one's own, and lists none
            more: dict[str, Any] = {}
            more_ids = {"job": sweep} if path.startswith("/v1/sweeps") else {}
            if method == "PATCH":
                more = {"json": {"priority": 1}}
            elif path.endswith(":compare"):
                more = {"params": {"with": ids["job"]}}
            elif method == "PUT" and "parts" in path:
                more = {"content": bytes(10), "params": {"sha256": hashlib.sha256(bytes(10)).hexdigest()}}
            elif method == "PUT" and path.endswith("{shadow_name}"):
                more = {"json": {"run": "r", "field": "picture", "kind": "image"}}
            elif (last := path.rpartition("/")[2]) in BODIES and method == "POST":
                more = {"json": BODIES[last]}
            headers = {**theirs, **(OCTETS if "content" in more else {})}
            answer = await client.request(method, path.format(**ids | more_ids), headers=headers, **more)
            assert answer.status_code == 404, (method, path, answer.status_code, answer.text)
            tried += 1
        assert tried > 40
        for path in ("/v1/jobs", "/v1/sweeps", "/v1/datasets", "/v1/models", "/v1/webhooks"):
            assert (await client.get(path, headers=theirs)).json()["items"] == []
            assert len((await client.get(path, headers=mine)).json()["items"]) == 1, path


async def test_a_key_with_every_scope_but_the_one_that_is_needed_is_403_for_every_operation(
    connect: Connect, home: Path
) -> None:
    headers = {scope: key(home, *(other for other in SCOPES if other not in (scope, "admin"))) for scope in SCOPES}
    async with connect(requests_at_once=100_000) as client:
        for method, path in operations():
            if (scope := needed(method, path)) == "none":
                continue
            answer = await client.request(method, path.replace("{", "").replace("}", ""), headers=headers[scope])
            assert (answer.status_code, answer.json()["type"]) == (403, "urn:raydml:problem:missing-scope"), (
                method,
                path,
            )
            nobody = await client.request(method, path)
            assert nobody.status_code == 401 and "www-authenticate" in nobody.headers, (method, path)


# --- replay -----------------------------------------------------------------------------------------------------------


async def test_a_key_of_requests_replays_for_its_project_and_its_body_alone(connect: Connect, home: Path) -> None:
    mine, theirs = (key(home, "datasets:write", project=name) for name in ("mine", "theirs"))
    once = {"Idempotency-Key": "same"}
    async with connect() as client:
        first = await client.post("/v1/datasets", json=UPLOAD, headers={**mine, **once})
        again = await client.post("/v1/datasets", json=UPLOAD, headers={**mine, **once})
        other = await client.post("/v1/datasets", json=UPLOAD, headers={**theirs, **once})
        changed = await client.post("/v1/datasets", json={**UPLOAD, "name": "n"}, headers={**mine, **once})
    assert first.json() == again.json() and first.json()["id"] != other.json()["id"]
    assert (changed.status_code, changed.json()["type"]) == (422, "urn:raydml:problem:key-used")


# --- specs ------------------------------------------------------------------------------------------------------------

TUNE = {"space": {"train.optimizer.lr": {"log_uniform": [0.001, 0.1]}}, "trials": 2}
EVIL: list[Any] = [
    {**SPEC, "data": {"kind": "custom"}},
    {**SPEC, "data": {"kind": "custom", "plugin": "os:system"}},
    {**SPEC, "data": {"kind": "custom", "plugin": "raydml.cli"}},
    {**SPEC, "model": {"backbone": {"kind": "custom", "plugin": "subprocess"}}},
    {**SPEC, "model": {"backbone": {"kind": "transformers", "path": "evil/model"}}},
    {**SPEC, "model": {"backbone": {"kind": "transformers", "architecture": "os.system"}}},
    {**SPEC, "loss": {"kind": "__import__('os').system('id')"}},
    {**SPEC, "loss": {"kind": "triplet", "miner": {"kind": "pickle", "path": "x.pkl"}}},
    {**SPEC, "entrypoint": "rm -rf /"},
    {**SPEC, "runtime_env": {"pip": ["evil"]}},
    {**SPEC, "name": "../../x"},
    {**SPEC, "index": {"collection": "../../x"}},
    {**SPEC, "batch": {"sampling": {"kind": "hard_classes", "negatives": "/etc/passwd"}}},
    {**SPEC, "data": {"kind": "manifest", "path": "x.csv", "text": {"kind": "tokenizer", "path": "/etc"}}},
    "name: !!python/object/apply:os.system ['id']\n",
    "name: s\ndata: !!python/name:os.system\nloss: {kind: triplet}\n",
    "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{next}: &{next} [{', '.join([f'*{last}'] * 9)}]\n" for last, next in pairwise("abcdefghi")),
    "a: &a [*a]\n",
    "{" * 10_000,
    "- " * 10_000,
]  # fmt: skip


@pytest.mark.parametrize("spec", EVIL, ids=range(len(EVIL)))
async def test_a_malicious_spec_is_refused_before_anything_is_opened_or_started(
    connect: Connect, home: Path, spec: Any
) -> None:
    async with connect() as client:
        for path in ("/v1/jobs", "/v1/jobs:plan", "/v1/sweeps", "/v1/sweeps:plan"):
            searching = isinstance(spec, dict) and path.startswith("/v1/sweeps")
            answer = await client.post(path, json={"spec": {**spec, "tune": TUNE} if searching else spec})
            assert answer.status_code == 422, answer.text
            assert not searching or "needs a section tune" not in answer.text
        assert (await client.get("/v1/jobs")).json()["items"] == (await client.get("/v1/sweeps")).json()["items"] == []


@pytest.mark.parametrize(
    "space",
    [
        {"data.path": {"choice": ["/etc/passwd", "/etc/shadow"]}},
        {"data": {"choice": [{"kind": "glyphs"}, {"kind": "manifest", "path": "/etc/passwd.csv"}]}},
        {"data": {"choice": [{"kind": "glyphs"}, {"kind": "custom", "plugin": "os"}]}},
        {"model.backbone.plugin": {"choice": ["os", "sys"]}},
        {"model": {"choice": [{"backbone": {"kind": "transformers", "path": "/etc"}}]}},
        {"loss": {"choice": [{"kind": "custom", "plugin": "os"}]}},
        {"batch.sampling": {"choice": [{"kind": "hard_classes", "negatives": "/etc/passwd"}]}},
        {"name": {"choice": ["../../x", "y"]}},
        {"index": {"choice": [{"collection": "../../x"}]}},
        {"parallel.workers.min": {"choice": [1, 1000]}},
        {"tune.trials": {"choice": [1, 1000]}},
        {"__class__.__init__": {"choice": [1, 2]}},
    ],
    ids=str,
)
async def test_a_malicious_space_is_refused_before_anything_is_kept(connect: Connect, space: dict[str, Any]) -> None:
    async with connect(cpus=4) as client:
        for path in ("/v1/sweeps", "/v1/sweeps:plan"):
            answer = await client.post(path, json={"spec": a_sweep(space=space)})
            assert answer.status_code == 422, answer.text
        assert (await client.get("/v1/sweeps")).json()["items"] == []


# --- SQL --------------------------------------------------------------------------------------------------------------

SQL = [
    "' OR 1=1 --",
    '" OR ""="',
    "x'; DROP TABLE jobs; --",
    "%",
    "_",
    "\\",
    "job_' UNION SELECT sha256 FROM api_keys --",
]


@pytest.mark.parametrize("text", SQL)
async def test_sql_in_filters_names_and_cursors_is_text(connect: Connect, text: str) -> None:
    desk = Desk()
    async with connect(desk) as client:
        job = desk.desk.store.create(SPEC, labels={"team": "search"}).id
        for query in ({"name": text}, {"label": f"team:{text}"}, {"label": text}, {"cursor": text}, {"state": text}):
            answer = await client.get("/v1/jobs", params=query)
            assert answer.status_code == 422 or answer.json()["items"] == [], (query, answer.text)
        for path in ("/v1/datasets", "/v1/models", "/v1/audit"):
            assert (await client.get(path, params={"cursor": text})).status_code == 422
        assert (await client.get(f"/v1/jobs/{text.replace('%', '%25')}")).status_code in (404, 422)
        await client.put("/v1/collections/c", json={"dimension": 2})
        points = {"ids": [1, text], "vectors": [[1, 0], [0, 1]], "payloads": [{"a": 1}, {"a": text}]}
        assert (await client.post("/v1/collections/c/points", json=points)).status_code == 200
        query = {"vectors": [[0, 1]], "k": 2, "filter": {"a": text}}
        found = (await client.post("/v1/collections/c/search", json=query)).json()["results"][0]
        assert [hit["id"] for hit in found] == [text]
        assert (await client.get(f"/v1/jobs/{job}")).status_code == 200


# --- logs -------------------------------------------------------------------------------------------------------------


async def test_nothing_that_a_client_sends_forges_a_log_line_or_puts_a_secret_into_one(
    connect: Connect, home: Path
) -> None:
    headers = key(home, "admin")
    token = headers["Authorization"].split()[1]
    secret = token.split("_", 2)[2]
    merge = structlog.contextvars.merge_contextvars
    with structlog.testing.capture_logs([merge, harmless]) as lines:
        async with connect() as client:
            for path in (f"/v1/{token}", "/v1/a%0alevel=error%0d%1b[31m", f"/v1/collections/{token}"):
                await client.get(path, headers=headers)
            await client.get("/v1/jobs", headers={"Authorization": f"Bearer {token}x"})
            await client.post("/v1/jobs", json={"spec": {"name": f"{token}\nlevel=error"}}, headers=headers)
        structlog.get_logger().warning(f"sent {token}\nlevel=error", authorization="Basic xyz", body={"token": "xyz"})
    render = structlog.processors.LogfmtRenderer(key_order=["event"])
    text = [str(render(None, "", {name: value for name, value in line.items()})) for line in lines]
    assert len(text) == 7
    assert all(len(line.splitlines()) == 1 and "\x1b" not in line for line in text), text
    assert not any(secret in line or "xyz" in line for line in text)
    assert json.dumps(lines, default=str).count(token.split("_")[1]) >= 3  # the prefix may be seen
