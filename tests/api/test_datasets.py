"""/v1/datasets over HTTP: uploads in parts, data under a root, reports, and jobs that use them."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.api.conftest import Connect
from tests.api.test_access import key
from tests.jobs.test_datasets import picture, pictures

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]
PART = {"content-type": "application/octet-stream"}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def create(client: httpx2.AsyncClient, content: bytes, **headers: str) -> Any:
    body = {"name": "mine", "kind": "archive", "size": len(content), "sha256": sha256(content)}
    answer = await client.post("/v1/datasets", json=body, headers=headers)
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/v1/datasets/{answer.json()['id']}"
    return answer.json()


async def send(client: httpx2.AsyncClient, content: bytes, made: Any, numbers: list[int]) -> None:
    for number in numbers:
        part = content[made["part_bytes"] * number :][: made["part_bytes"]]
        path = f"/v1/datasets/{made['id']}/parts/{number}"
        answer = await client.put(path, params={"sha256": sha256(part)}, content=part, headers=PART)
        assert answer.status_code == 204, answer.text


async def checked(client: httpx2.AsyncClient, identity: str) -> Any:
    while (found := (await client.get(f"/v1/datasets/{identity}")).json())["state"] == "checking":
        await asyncio.sleep(0.1)
    return found


async def test_an_upload_goes_on_after_a_crash_with_the_parts_that_are_missing_and_a_job_uses_it(
    connect: Connect, home: Path
) -> None:
    content = pictures()
    async with connect(dataset_part_bytes=500) as client:
        made = await create(client, content, **{"Idempotency-Key": "upload"})
        assert (await create(client, content, **{"Idempotency-Key": "upload"}))["id"] == made["id"]
        assert made["num_parts"] == -(-len(content) // 500) > 2
        await send(client, content, made, [1, 0])
        early = await client.post(f"/v1/datasets/{made['id']}/complete")
        assert (early.status_code, early.json()["type"]) == (409, "urn:raydml:problem:record-conflict")
        assert "parts are missing: 2" in early.json()["detail"]
    async with connect(dataset_part_bytes=700) as client:  # another server, which would cut other parts
        there = (await client.get(f"/v1/datasets/{made['id']}")).json()
        assert [part["number"] for part in there["parts"]] == [0, 1] and there["part_bytes"] == 500
        await send(client, content, made, list(range(2, made["num_parts"])))
        assert (await client.post(f"/v1/datasets/{made['id']}/complete")).status_code == 202
    async with connect() as client:  # a third one, which finishes what the second was checking
        ready = await checked(client, made["id"])
        assert (ready["state"], ready["problem"], ready["parts"]) == ("ready", None, [])
        assert (ready["report"]["items"], ready["report"]["classes"]) == (6, 3)
        assert str(home) not in str(ready)
        data = {"kind": "image_folder", "path": f"dataset:{made['id']}", "image_size": 16}
        report = await client.post("/v1/datasets:validate", json={"data": data})
        assert report.json() == ready["report"]
        spec = {
            "name": "s",
            "data": data,
            "loss": {"kind": "triplet"},
            "batch": {"classes": 2, "samples": 2, "virtual_workers": 1},
        }
        spec["parallel"] = {"workers": {"min": 1, "max": 1}}
        job = await client.post("/v1/jobs", json={"spec": spec})
        # two classes of two pictures train, one tests; the path is the server's own from here on
        assert job.status_code == 201, job.text
        assert job.json()["spec"]["data"]["path"] == str(home / "datasets" / made["id"] / "mine")
        used = await client.delete(f"/v1/datasets/{made['id']}")
        assert used.status_code == 409 and job.json()["id"] in used.json()["detail"]
        await client.post(f"/v1/jobs/{job.json()['id']}/cancel")
        assert (await client.delete(f"/v1/datasets/{made['id']}")).status_code == 204
        gone = await client.post("/v1/jobs", json={"spec": spec})
        assert gone.status_code == 422 and "there is no data set" in gone.json()["detail"]


async def test_what_lies_under_a_root_is_a_data_set_and_what_lies_elsewhere_is_not(
    connect: Connect, home: Path
) -> None:
    root = home / "data"
    for number in range(6):
        path = root / "mine" / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    async with connect() as client:
        made = (await client.post("/v1/datasets", json={"name": "m", "path": "mine"})).json()
        assert (await checked(client, made["id"]))["report"]["items"] == 6
        for path in ("../mine", "/etc", "dataset:dst_0", f"dataset:{made['id']}", "none"):
            refused = await client.post("/v1/datasets", json={"name": "m", "path": path})
            assert refused.status_code == 422, (path, refused.text)
            if path.endswith(made["id"]):
                continue
            refused = await client.post("/v1/datasets:validate", json={"data": {"kind": "image_folder", "path": path}})
            assert refused.status_code == 422, (path, refused.text)
        assert (await client.delete(f"/v1/datasets/{made['id']}")).status_code == 204
        assert (root / "mine").is_dir()


async def test_data_sets_of_another_project_are_not_there_and_pages_follow_each_other(
    connect: Connect, home: Path
) -> None:
    mine, theirs = (key(home, "datasets:read", "datasets:write", project=name) for name in ("mine", "theirs"))
    async with connect(max_dataset_bytes=100, max_datasets=3) as client:
        ids = [(await create(client, bytes(10), **mine))["id"] for _ in range(3)]
        body = {"name": "m", "kind": "csv", "size": 10, "sha256": sha256(b"")}
        full = await client.post("/v1/datasets", json=body, headers=mine)
        assert (full.status_code, full.json()["type"]) == (409, "urn:raydml:problem:quota-exceeded")
        large = await client.post("/v1/datasets", json={**body, "size": 101}, headers=theirs)
        assert large.status_code == 409 and "100 are taken" in large.json()["detail"]
        part = {"params": {"sha256": sha256(bytes(10))}, "content": bytes(10)}
        for method, path, options in (
            ("GET", "", {}),
            ("DELETE", "", {}),
            ("POST", "/complete", {}),
            ("PUT", "/parts/0", part),
        ):
            asked = await client.request(method, f"/v1/datasets/{ids[0]}{path}", headers={**PART, **theirs}, **options)
            assert (asked.status_code, asked.json()["type"]) == (404, "urn:raydml:problem:record-not-found"), method
        assert (await client.get("/v1/datasets", headers=theirs)).json() == {"items": [], "next_cursor": None}
        first = (await client.get("/v1/datasets", params={"limit": 2}, headers=mine)).json()
        cursor = {"cursor": first["next_cursor"]}
        second = (await client.get("/v1/datasets", params=cursor, headers=mine)).json()
        assert [each["id"] for each in first["items"] + second["items"]] == ids[::-1]
        assert (await client.get("/v1/datasets", params=cursor, headers=theirs)).status_code == 422
        reader = key(home, "datasets:read", project="mine")
        assert (await client.delete(f"/v1/datasets/{ids[0]}", headers=reader)).status_code == 403


@pytest.mark.parametrize(
    "body",
    [
        {"name": "m"},
        {"name": "m", "kind": "archive", "size": 1},
        {"name": "m", "kind": "archive", "size": 0, "sha256": sha256(b"")},
        {"name": "m", "kind": "pickle", "size": 1, "sha256": sha256(b"")},
        {"name": "m", "path": "x", "kind": "archive", "size": 1, "sha256": sha256(b"")},
        {"name": "../m", "path": "x"},
        {"name": "m", "url": "http://169.254.169.254/latest/meta-data"},
    ],
)
async def test_a_data_set_that_is_neither_upload_nor_path_is_refused(connect: Connect, body: dict[str, Any]) -> None:
    async with connect() as client:
        assert (await client.post("/v1/datasets", json=body)).status_code == 422
