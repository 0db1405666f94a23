"""/v1/models and /v1/webhooks over HTTP."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from fastapi import FastAPI

from api.job_desk import JobDesk
from raydml import load_model
from raydml.data import Preprocessing
from raydml.models.embedding import build_model
from raydml.models.exported import save_model
from raydml.spec import Linear, ModelSpec
from tests.api.conftest import Connect
from tests.api.test_access import key

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(100)]


def finished(run: Path, seed: int = 0, state: str = "succeeded") -> str:
    """A run that has trained a small model; the SHA-256 of its weights."""
    described = ModelSpec(backbone=Linear(), dimension=4)
    model = build_model(described, (3,), seed=seed)
    digest = save_model(run / "model", model, described, (3,), Preprocessing("vector", (3,)))
    (run / "model" / "README.md").write_text("# A card\n")
    (run / "run.json").write_text(json.dumps({"state": state, "metrics": {"map_at_r": 0.5}}))
    return digest


async def register(client: httpx2.AsyncClient, run: str, **headers: str) -> Any:
    answer = await client.post("/v1/models", json={"run": run, "name": "faces"}, headers=headers)
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/v1/models/{answer.json()['id']}"
    return answer.json()


async def test_a_model_is_copied_with_digests_exported_and_downloaded_in_parts(
    connect: Connect, home: Path, tmp_path: Path
) -> None:
    digest = finished(home / "runs" / "r")
    async with connect() as client:
        made = await register(client, "r")
        assert (made["sha256"], made["dimension"], made["metrics"]) == (digest, 4, {"map_at_r": 0.5})
        expected = load_model(home / "runs" / "r" / "model").embed([np.ones(3, np.float32)])
        (home / "runs" / "r" / "model" / "model.safetensors").unlink()  # the copy outlives the run
        exports = [await client.get(f"/v1/models/{made['id']}/export") for _ in range(2)]
        assert exports[0].content == exports[1].content
        assert exports[0].headers["content-length"] == str(len(exports[0].content))
        with tarfile.open(fileobj=io.BytesIO(exports[0].content)) as archive:
            archive.extractall(tmp_path, filter="data")
        folder = tmp_path / made["id"]
        subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True, capture_output=True)
        assert np.array_equal(load_model(folder).embed([np.ones(3, np.float32)]), expected)
        assert {file["path"] for file in made["files"]} == {path.name for path in folder.iterdir()} - {"SHA256SUMS"}

        url = f"/v1/models/{made['id']}/files/model.safetensors"
        whole = await client.get(url)
        assert hashlib.sha256(whole.content).hexdigest() == digest and whole.headers["etag"] == f'"{digest}"'
        part = await client.get(url, headers={"Range": "bytes=3-6", "If-Range": whole.headers["etag"]})
        assert (part.status_code, part.content) == (206, whole.content[3:7])
        for path in (
            "../../../raydml.sqlite3",
            "..%2f..%2fraydml.sqlite3",
            "%2fetc%2fpasswd",
            "none",
            "model.safetensors/",
        ):
            assert (await client.get(f"/v1/models/{made['id']}/files/{path}")).status_code == 404, path


async def test_an_alias_moves_at_once_only_from_where_it_was_seen_and_its_history_stays(
    connect: Connect, home: Path
) -> None:
    for number in range(2):
        finished(home / "runs" / f"r{number}", number)
    async with connect() as client:
        one, other = [await register(client, f"r{number}") for number in range(2)]

        async def promote(model: Any, **body: Any) -> httpx2.Response:
            return await client.post(f"/v1/models/{model['id']}/promote", json={"alias": "production", **body})

        assert (await promote(one)).json()["aliases"] == ["production"]
        assert (await promote(one)).status_code == 200  # again: no move
        late = await promote(other, expected=other["id"])
        assert late.status_code == 409 and f"points to {one['id']}" in late.json()["detail"]
        assert (await promote(other, expected=one["id"])).json()["aliases"] == ["production"]
        assert (await client.get(f"/v1/models/{one['id']}")).json()["aliases"] == []
        found = (await client.get("/v1/models", params={"name": "faces", "alias": "production"})).json()
        assert [model["id"] for model in found["items"]] == [other["id"]]
        moves = (await client.get(f"/v1/models/{one['id']}/promotions")).json()["items"]
        assert [(move["model"], move["before"]) for move in moves] == [(other["id"], one["id"]), (one["id"], None)]
        page = (await client.get("/v1/models", params={"limit": 1})).json()
        rest = (await client.get("/v1/models", params={"cursor": page["next_cursor"]})).json()
        assert [model["id"] for model in page["items"] + rest["items"]] == [other["id"], one["id"]]


class Desk:
    """The application's own store of jobs."""

    def __call__(self, app: FastAPI) -> None:
        self.desk: JobDesk = app.state.service.jobs


@pytest.mark.parametrize(
    ("prepare", "problem"),
    [
        (lambda run: None, "has exported no model"),
        (lambda run: finished(run, state="running"), "is running"),
        (lambda run: (finished(run), (run / "model" / "model.safetensors").write_bytes(b"x")), "are damaged"),
    ],
)
async def test_a_run_without_a_whole_model_registers_nothing(
    connect: Connect, home: Path, prepare: Callable[[Path], Any], problem: str
) -> None:
    prepare(home / "runs" / "r")
    async with connect() as client:
        answer = await client.post("/v1/models", json={"run": "r"})
        assert answer.status_code == 409 and problem in answer.json()["detail"]
        assert (await client.get("/v1/models")).json()["items"] == []
    assert not list(home.glob("models/*"))


async def test_models_of_another_project_are_not_there(connect: Connect, home: Path) -> None:
    mine, theirs = (key(home, "models:read", "models:write", project=name) for name in ("mine", "theirs"))
    desk = Desk()
    async with connect(desk) as client:
        project = (await client.get("/v1/models", headers=mine)).status_code == 200 and _project(desk, mine)
        job = desk.desk.store.create(
            {"name": "s", "data": {"kind": "glyphs"}, "loss": {"kind": "triplet"}}, project=project
        )
        finished(desk.desk.store.run_folder(job.id))
        assert (await client.post("/v1/models", json={"job": job.id}, headers=theirs)).status_code == 404
        made = (await client.post("/v1/models", json={"job": job.id}, headers=mine)).json()
        assert (made["source"], made["name"]) == (job.id, "s")
        for method, path in (
            ("GET", ""),
            ("GET", "/export"),
            ("GET", "/files/README.md"),
            ("GET", "/promotions"),
            ("POST", "/promote"),
        ):
            body = {"json": {"alias": "production"}} if method == "POST" else {}
            answer = await client.request(method, f"/v1/models/{made['id']}{path}", headers=theirs, **body)  # type: ignore[arg-type]
            assert answer.status_code == 404, (path, answer.text)
        assert (await client.get("/v1/models", headers=theirs)).json()["items"] == []
        assert (await client.get(f"/v1/models/{made['id']}/files/README.md", headers=mine)).text == "# A card\n"


def _project(desk: Desk, headers: dict[str, str]) -> str:
    from raydml.jobs.ids import milliseconds
    from raydml.jobs.keys import caller_of

    with desk.desk.database.reading() as session:
        caller = caller_of(session, headers["Authorization"].split()[1], milliseconds())
    assert caller is not None
    return caller.project


async def test_webhooks_are_made_listed_and_removed_by_admins_and_their_secret_is_shown_once(
    connect: Connect, home: Path
) -> None:
    admin, other = key(home, "admin", project="p"), key(home, "admin", project="q")
    writer = key(home, "jobs:write", project="p")
    async with connect(webhook_hosts=("hooks.example",)) as client:
        body = {"url": "https://hooks.example/x"}
        assert (await client.post("/v1/webhooks", json=body, headers=writer)).status_code == 403
        made = await client.post("/v1/webhooks", json=body, headers=admin)
        assert made.status_code == 201 and made.json()["secret"].startswith("whsec_")
        elsewhere = await client.post("/v1/webhooks", json={"url": "https://evil.example/"}, headers=admin)
        assert elsewhere.status_code == 422 and "RAYDML_WEBHOOK_HOSTS" in elsewhere.json()["detail"]
        listed = (await client.get("/v1/webhooks", headers=admin)).json()["items"]
        assert listed == [{name: value for name, value in made.json().items() if name != "secret"}]
        path = f"/v1/webhooks/{made.json()['id']}"
        assert (await client.get("/v1/webhooks", headers=other)).json()["items"] == []
        assert (await client.get(f"{path}/deliveries", headers=other)).status_code == 404
        assert (await client.delete(path, headers=other)).status_code == 404
        assert (await client.get(f"{path}/deliveries", headers=admin)).json() == {"items": []}
        assert (await client.delete(path, headers=admin)).status_code == 204
        assert (await client.get("/v1/webhooks", headers=admin)).json()["items"] == []
