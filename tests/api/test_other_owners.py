"""What an owner may learn by ways around ids: names of runs, streams that outlive a key."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fastapi import FastAPI

from api.service import Service
from tests.api.conftest import Connect
from tests.api.test_access import key
from tests.api.test_attacks import SPEC, Desk
from tests.api.test_models import finished

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]


async def test_the_run_of_another_projects_job_is_nobodys_model(connect: Connect, home: Path) -> None:
    """All jobs' runs lie in the server's folder, which is the default project's."""
    desk = Desk()
    owners = {name: key(home, "admin", project=name) for name in ("default", "mine")}
    async with connect(desk) as client:
        job = desk.desk.store.create(SPEC, project=desk.project(owners["mine"])).id
        finished(home / "runs" / job)
        for name, status in (("default", 404), ("mine", 201)):
            headers = owners[name]
            for path, body in (
                ("/v1/models", {"run": job}),
                ("/v1/models", {"job": job}),
                ("/v1/collections", {"name": "c", "run": job}),
            ):
                answer = await client.post(path, json=body, headers=headers)
                assert answer.status_code == status, (name, path, answer.text)
            await client.put("/v1/collections/d", json={"dimension": 4}, headers=headers)
            filling = {"run": job, "field": "picture", "kind": "image"}
            shadow = await client.put("/v1/collections/d/shadows/e", json=filling, headers=headers)
            assert shadow.status_code == {404: 404, 201: 200}[status], (name, shadow.text)


async def test_a_stream_of_events_breaks_off_when_its_key_is_revoked(connect: Connect, home: Path) -> None:
    reading, admin = key(home, "jobs:read"), key(home, "admin")
    desk, services = Desk(), list[Service]()

    def prepare(app: FastAPI) -> None:
        desk(app)
        services.append(app.state.service)

    async with connect(prepare, heartbeat_seconds=0.01) as client:
        job = desk.desk.store.create(SPEC).id
        ids = {each["prefix"]: each["id"] for each in (await client.get("/v1/keys", headers=admin)).json()["items"]}
        headers = {**reading, "accept": "text/event-stream"}
        stream = asyncio.create_task(client.get(f"/v1/jobs/{job}/events", headers=headers))
        looks = services[0].jobs.followers.looks
        while services[0].jobs.followers.looks < looks + 8:  # over two seconds: twice as long as a look is believed
            await asyncio.sleep(0.05)
        assert not stream.done()
        prefix = reading["Authorization"].split("_")[1]
        assert (await client.delete(f"/v1/keys/{ids[prefix]}", headers=admin)).status_code == 200
        told = await stream
        assert told.text.count("id: 1") == 1 and "event: end" not in told.text
        assert (await client.get(f"/v1/jobs/{job}/events", headers=headers)).status_code == 401
