"""Jobs over HTTP, without a supervisor: what is kept, listed, changed, refused, and answered again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from api.job_desk import JobDesk
from raydml.jobs.changes import add_event, move
from raydml.jobs.ids import new_id
from raydml.jobs.outputs import LONGEST
from raydml.jobs.records import Job
from raydml.jobs.retention import forget
from raydml.jobs.states import State
from raydml.jobs.tables import CheckpointRow, JobRow, MetricRow
from tests.api.conftest import Connect

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
JOBS = "/v1/jobs"
EVENTS = {"accept": "text/event-stream"}


def a_spec(**changes: Any) -> dict[str, Any]:
    parallel = {"workers": {"min": 1, "max": 4}}
    return {"name": "small", "data": {"kind": "glyphs"}, "loss": {"kind": "triplet"}, "parallel": parallel} | changes


class Desk:
    """The application's own store, for what a supervisor would do; taken while a client is connected."""

    def __call__(self, app: FastAPI) -> None:
        self.desk: JobDesk = app.state.service.jobs

    def job(self, name: str = "small", labels: Mapping[str, str] | None = None, project: str | None = None) -> Job:
        owner = {} if project is None else {"project": project}
        return self.desk.store.create(a_spec(), name=name, labels=labels or {}, **owner)

    def moved(self, job: Job, *states: State) -> None:
        with self.desk.database.transaction() as session:
            row = session.get_one(JobRow, job.id)
            for state in states:
                move(session, row, state, row.updated_at + 1, "tested" if state == "failed" else None)

    def told(self, job: Job, type: str, *documents: dict[str, Any]) -> None:
        with self.desk.database.transaction() as session:
            for document in documents:
                row = session.get_one(JobRow, job.id)
                add_event(session, row, type, document, row.updated_at + 1)

    def logged(self, job: Job, attempt: int, text: bytes) -> Path:
        with self.desk.database.transaction() as session:
            session.get_one(JobRow, job.id).attempt = attempt
        path = self.desk.store.log_path(job.id, attempt)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
        return path


def kind(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["type"].removeprefix("urn:raydml:problem:")


def frames(answer: httpx2.Response) -> list[tuple[str | None, Any]]:
    """Ids and documents of server-sent events; `end` has no id."""
    found = []
    for frame in answer.text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in frame.splitlines())
        if "data" in lines:
            found.append((lines.get("id", lines.get("event")), json.loads(lines["data"])))
    return found


async def test_a_job_is_shown_as_it_was_asked_for(connect: Connect) -> None:
    desk = Desk()
    async with connect(desk) as client:
        job = desk.job(labels={"team": "search"})
        answer = await client.get(f"{JOBS}/{job.id}")
    document = answer.json()
    assert (answer.status_code, answer.headers["etag"]) == (200, f'"{document["version"]}"')
    assert (document["id"], document["state"], document["labels"]) == (job.id, "queued", {"team": "search"})
    assert (document["workers"], document["attempt"], document["parent"]) == ({"min": 1, "max": 4}, 0, None)
    assert document["created_at"].endswith("Z") and len(document["created_at"]) == 24
    assert document["spec"]["loss"]["kind"] == "triplet"


@pytest.mark.parametrize("path", ["", "/events", "/metrics", "/logs", "/checkpoints", "/workers", "/evaluation"])
async def test_what_is_another_projects_is_not_there(connect: Connect, path: str) -> None:
    desk = Desk()
    async with connect(desk) as client:
        job = desk.job(project="prj_" + "1" * 26)
        for id in (job.id, new_id("job")):
            assert kind(await client.get(f"{JOBS}/{id}{path}")) == (404, "job-not-found")
        assert kind(await client.get(f"{JOBS}/job_1{path}")) == (422, "invalid-request")
        assert kind(await client.post(f"{JOBS}/{job.id}/kill")) == (404, "job-not-found")
        assert kind(await client.patch(f"{JOBS}/{job.id}", json={"priority": 1})) == (404, "job-not-found")
        assert (await client.get(JOBS)).json() == {"items": [], "next_cursor": None}


async def test_every_mistake_of_a_spec_is_named_with_its_path_and_its_line(connect: Connect) -> None:
    text = "name: a\ndata: {kind: glyphs}\nloss: {kind: triplet, margn: 1}\ntrain: {steps: 0}\n"
    body = '{"spec": {"name": "a",\n"data": {"kind": "glyphs"},\n"loss": {"kind": "triplet", "margn": 1},'
    body += '\n"train": {"steps": 0}}}'
    async with connect() as client:
        answers = [
            await client.post(f"{JOBS}{path}", content=content, headers={"content-type": "application/json"})
            for path in ("", ":plan")
            for content in (json.dumps({"spec": text}), body)
        ]
        assert (await client.get(JOBS)).json()["items"] == []
    for answer in answers:
        assert kind(answer) == (422, "spec-error")
        assert [(each["path"], each["line"]) for each in answer.json()["errors"]] == [
            ("spec.loss.margn", 3), ("spec.train.steps", 4),
        ]  # fmt: skip
        assert "did you mean margin?" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("content", "status", "problem"),
    [
        ({}, 422, "invalid-request"), ({"spec": 3}, 422, "invalid-request"), ([], 422, "invalid-request"),
        ({"spec": "a: &b 1\nc: *b"}, 422, "spec-error"), ({"spec": "x" * 70_000}, 413, "spec-too-long"),
        ({"spec": {"name": "x" * 70_000}}, 413, "spec-too-long"), ({"spec": "[" * 9000}, 422, "spec-error"),
        ({"spec": {}, "entrypoint": "rm -rf /"}, 422, "invalid-request"),
        ({"spec": {}, "priority": 101}, 422, "invalid-request"), ({"spec": {}, "name": "../x"}, 422, "invalid-request"),
        ({"spec": {}, "labels": {"a b": "c"}}, 422, "invalid-request"),
        ({"spec": {}, "labels": {"a": "line\nbreak"}}, 422, "invalid-request"),
        ({"spec": {}, "labels": {f"a{number}": "" for number in range(65)}}, 422, "invalid-request"),
        ({"spec": {}, "deadline_seconds": 0}, 422, "invalid-request"),
    ],
)  # fmt: skip
async def test_a_wrong_request_is_refused_and_nothing_is_kept(
    connect: Connect, content: Any, status: int, problem: str
) -> None:
    async with connect() as client:
        assert kind(await client.post(JOBS, json=content)) == (status, problem)
        assert kind(await client.post(JOBS, content=b"{", headers={"content-type": "application/json"}))[0] == 400
        assert kind(await client.post(JOBS, content=b"{}", headers={"content-type": "text/yaml"}))[0] == 415
        assert (await client.get(JOBS)).json()["items"] == []


async def test_lists_go_page_by_page_from_the_newest_and_filters_hold_on_every_page(connect: Connect) -> None:
    desk = Desk()
    async with connect(desk) as client:
        made = [desk.job(f"n{number % 2}", {"parity": str(number % 2), "all": "a:b"}).id for number in range(7)]
        desk.moved(desk.desk.store.get(made[3]), "cancelled")

        async def pages(query: str, limit: int) -> list[str]:
            found, cursor = [], ""
            while True:
                page = (await client.get(f"{JOBS}?{query}&limit={limit}{cursor}")).json()
                assert len(page["items"]) <= limit
                found += [item["id"] for item in page["items"]]
                if page["next_cursor"] is None:
                    return found
                cursor = f"&cursor={page['next_cursor']}"

        assert await pages("", 2) == made[::-1]
        assert await pages("label=parity:1", 2) == [made[5], made[3], made[1]]
        assert await pages("label=parity:1&label=all:a:b&state=queued", 1) == [made[5], made[1]]
        assert await pages("name=n0", 3) == [made[6], made[4], made[2], made[0]]
        assert await pages("state=cancelled&state=failed", 3) == [made[3]]
        cursor = (await client.get(f"{JOBS}?limit=2")).json()["next_cursor"]
        for wrong in (f"cursor={cursor}&name=n0", "cursor=x", f"cursor={cursor[:-2]}", "cursor=%F0%9F%98%80"):
            assert kind(await client.get(f"{JOBS}?{wrong}")) == (422, "invalid-request")
        for wrong in ("state=lost", "label=a", "label=a:b&label=a:c", "limit=0", "limit=1001", "name=a%00b"):
            assert kind(await client.get(f"{JOBS}?{wrong}")) == (422, "invalid-request")


async def test_a_patch_merges_and_is_refused_where_somebody_came_between(connect: Connect) -> None:
    desk = Desk()
    async with connect(desk) as client:
        path = f"{JOBS}/{desk.job(labels={'a': '1', 'b': '2'}).id}"
        tag = (await client.get(path)).headers["etag"]
        merge = {"content-type": "application/merge-patch+json", "if-match": tag}
        body = json.dumps({"labels": {"a": None, "c": "3"}, "priority": 5})
        patched = await client.patch(path, content=body, headers=merge)
        assert (patched.status_code, patched.json()["priority"]) == (200, 5)
        assert patched.json()["labels"] == {"b": "2", "c": "3"}
        refused = await client.patch(path, content=body, headers=merge)
        assert kind(refused) == (412, "changed-since")
        assert refused.headers["etag"] == patched.headers["etag"] != tag
        for seen in ("*", "{}", '"x", {}'):
            tag = (await client.get(path)).headers["etag"]
            again = await client.patch(path, json={}, headers={"if-match": seen.format(tag)})
            assert again.status_code == 200
        for seen in (f"W/{(await client.get(path)).headers['etag']}", '"0"'):
            assert kind(await client.patch(path, json={}, headers={"if-match": seen}))[0] == 412
        assert kind(await client.patch(path, json={}, headers={"if-match": "x"}))[0] == 422
        gone = await client.patch(path, json={"labels": None, "priority": None, "max_workers": 2})
        assert (gone.json()["labels"], gone.json()["priority"]) == ({}, 0)
        assert gone.json()["workers"] == {"min": 1, "max": 2}
        assert (await client.patch(path, json={"max_workers": None})).json()["workers"]["max"] == 4
        assert kind(await client.patch(path, json={"max_workers": 0})) == (422, "invalid-request")
        assert kind(await client.patch(path, json={"state": "failed"}))[0] == 422


async def test_verbs_are_events_and_an_ended_job_takes_none(connect: Connect) -> None:
    desk = Desk()
    async with connect(desk) as client:
        path = f"{JOBS}/{desk.job().id}"
        for verb, state in (("pause", "paused"), ("resume", "queued"), ("pause", "paused"), ("cancel", "cancelled")):
            answer = await client.post(f"{path}/{verb}")
            assert (answer.status_code, answer.json()["state"]) == (202, state)
        for verb in ("pause", "resume", "cancel", "kill", "resize"):
            refused = await client.post(f"{path}/{verb}", json={"workers": 2})
            assert kind(refused) == (409, "job-conflict")
            assert "cancelled" in refused.json()["detail"]
        events = (await client.get(f"{path}/events")).json()["items"]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    verbs = [event["data"]["verb"] for event in events if event["type"] == "verb"]
    assert verbs == ["pause", "resume", "pause", "cancel"]


async def test_workers_are_a_number_or_a_range_within_what_the_spec_can_use(connect: Connect) -> None:
    desk = Desk()
    async with connect(desk) as client:
        path = f"{JOBS}/{desk.job().id}/resize"
        assert (await client.post(path, json={"workers": 3})).json()["workers"] == {"min": 1, "max": 3}
        ranged = await client.post(path, json={"workers": {"min": 2, "max": 8}})
        assert (ranged.status_code, ranged.json()["workers"]) == (202, {"min": 2, "max": 8})
        for wrong in ({"min": 3, "max": 2}, {"min": 9, "max": 9}, 0, "two", {"min": 1}):
            assert kind(await client.post(path, json={"workers": wrong}))[0] == 422
        seen = {"if-match": '"0"'}
        assert kind(await client.post(path, json={"workers": 1}, headers=seen)) == (412, "changed-since")


async def test_a_request_that_is_sent_again_under_its_key_changes_nothing(connect: Connect) -> None:
    desk = Desk()
    async with connect(desk) as client:
        path, key = f"{JOBS}/{desk.job().id}", {"idempotency-key": "order-66"}
        first = await client.post(f"{path}/resize", json={"workers": 2}, headers=key)
        await client.post(f"{path}/resize", json={"workers": 3})
        again = await client.post(f"{path}/resize", json={"workers": 2}, headers=key)
        assert (again.status_code, again.json()) == (202, first.json())
        assert (again.headers["etag"], again.headers["idempotency-replayed"]) == (first.headers["etag"], "true")
        assert (await client.get(path)).json()["workers"]["max"] == 3
        other = await client.post(f"{path}/resize", json={"workers": 1}, headers=key)
        assert kind(other) == (422, "key-used")
        elsewhere = await client.post(f"{path}/pause", headers=key)
        assert (elsewhere.status_code, elsewhere.json()["state"]) == (202, "paused")
        for wrong in ("", "two words", "x" * 201):
            assert kind(await client.post(f"{path}/pause", headers={"idempotency-key": wrong}))[0] == 422


async def test_a_key_of_a_refused_request_may_be_used_again(connect: Connect) -> None:
    desk = Desk()
    async with connect(desk) as client:
        job, key = desk.job(), {"idempotency-key": "k"}
        desk.moved(job, "starting", "running", "stopping")
        refused = await client.post(f"{JOBS}/{job.id}/resume", headers=key)
        assert kind(refused) == (409, "job-conflict")
        desk.moved(job, "paused")
        taken = await client.post(f"{JOBS}/{job.id}/resume", headers=key)
        assert (taken.status_code, taken.json()["state"]) == (202, "queued")


async def test_events_are_pages_and_streams_that_go_on_behind_the_last_id(connect: Connect) -> None:
    desk = Desk()
    async with connect(desk) as client:
        job = desk.job()
        path = f"{JOBS}/{job.id}/events"
        desk.told(job, "watch", *[{"number": number} for number in range(5)])
        page = (await client.get(f"{path}?limit=4")).json()
        assert ([event["seq"] for event in page["items"]], page["next"]) == ([1, 2, 3, 4], 4)
        rest = (await client.get(f"{path}?after={page['next']}")).json()
        assert ([event["seq"] for event in rest["items"]], rest["next"]) == ([5, 6], 6)
        assert (await client.get(f"{path}?after=6")).json() == {"items": [], "next": 6}
        assert kind(await client.get(f"{path}?after=7")) == (422, "invalid-request")
        desk.moved(job, "failed")
        told = await client.get(path, headers=EVENTS)
        assert told.headers["content-type"].startswith("text/event-stream")
        assert [id for id, _ in frames(told)] == ["1", "2", "3", "4", "5", "6", "7", "end"]
        assert frames(told)[-1][1] == {"state": "failed"}
        assert [document for _, document in frames(told)[:4]] == page["items"]
        again = await client.get(f"{path}?after=1", headers=EVENTS | {"last-event-id": "5"})
        assert [id for id, _ in frames(again)] == ["6", "7", "end"]
        for wrong in ("x", "-1", "9" * 19):
            assert kind(await client.get(path, headers=EVENTS | {"last-event-id": wrong}))[0] == 422


async def test_what_was_forgotten_is_told_from_what_never_was(connect: Connect) -> None:
    desk = Desk()
    async with connect(desk) as client:
        job = desk.job()
        path = f"{JOBS}/{job.id}/events"
        desk.told(job, "watch", {}, {})
        desk.moved(job, "failed")
        forget(desk.desk.database, before=2**60)
        for headers in ({}, EVENTS):
            expired = await client.get(path, headers=headers)
            assert kind(expired) == (410, "expired")
            assert "after=3" in expired.json()["detail"]
        assert [event["seq"] for event in (await client.get(f"{path}?after=3")).json()["items"]] == [4]


async def test_metrics_come_in_order_with_their_attempt(connect: Connect) -> None:
    desk = Desk()
    async with connect(desk) as client:
        job = desk.job()
        with desk.desk.database.transaction() as session:
            for number in (1, 2):
                row = MetricRow(job_id=job.id, seq=number, attempt=1, step=10 * number, time=None, data={"loss": 0.5})
                session.add(row)
            session.get_one(JobRow, job.id).last_metric = 2
        page = (await client.get(f"{JOBS}/{job.id}/metrics?limit=1")).json()
        desk.moved(job, "cancelled")
        told = await client.get(f"{JOBS}/{job.id}/metrics", headers=EVENTS | {"last-event-id": "1"})
    item = {"seq": 1, "attempt": 1, "step": 10, "time": None, "data": {"loss": 0.5}}
    assert page == {"items": [item], "next": 1}
    assert [id for id, _ in frames(told)] == ["2", "end"]


async def test_logs_come_by_lines_whose_ids_are_bytes(connect: Connect) -> None:
    desk = Desk()
    async with connect(desk) as client:
        job = desk.job()
        path = f"{JOBS}/{job.id}/logs"
        assert (await client.get(path)).json() == {"attempt": 0, "items": [], "next": 0}
        long = b"x" + "ü".encode() * LONGEST
        log = desk.logged(job, 1, b"one\n" + long + b"\nbad \xff\nhalf")
        page = (await client.get(path)).json()
        texts = [line["text"] for line in page["items"]]
        assert (page["attempt"], texts[0], "".join(texts[1:-1]), texts[-1]) == (1, "one", long.decode(), "bad �")
        assert page["items"][0]["id"] == 4
        assert page["next"] == len(log.read_bytes()) - len(b"half"), "a line is given once it has ended"
        for line, following in zip(page["items"], page["items"][1:], strict=False):
            behind = (await client.get(f"{path}?after={line['id']}&limit=1")).json()
            assert behind["items"] == [following]
        desk.logged(job, 2, b"second\nlast words")
        first = await client.get(f"{path}?attempt=1&after={page['next']}", headers=EVENTS)
        assert frames(first)[0][1]["text"] == "half"
        assert frames(first)[1] == ("end", {"state": "queued", "attempt": 1, "next_attempt": 2})
        desk.moved(job, "failed")
        second = await client.get(path, headers=EVENTS)
        assert [document.get("text") for _, document in frames(second)] == ["second", "last words", None]
        assert frames(second)[-1][1] == {"state": "failed", "attempt": 2, "next_attempt": None}
        assert kind(await client.get(f"{path}?attempt=3")) == (404, "no-such-attempt")


async def test_workers_and_evaluations_are_told_from_what_happened(connect: Connect) -> None:
    desk = Desk()
    change = {"epoch": 1, "members": ["w"], "down": 0.5, "lost": 0, "note": "", "attempt": 1}
    changes = [
        {**change, "time": 1.5, "step": 0, "cause": "start", "before": 0, "after": 3},
        {**change, "time": 2.5, "step": 40, "cause": "death", "before": 3, "after": 2},
    ]
    async with connect(desk) as client:
        job = desk.job()
        desk.told(job, "membership", *changes)
        desk.told(job, "evaluation", {"step": 50, "metrics": {"map_at_r": 0.5}})
        desk.moved(job, "starting", "running")
        with desk.desk.database.transaction() as session:
            session.add(CheckpointRow(job_id=job.id, step=50, state_sha256="ab", seen_at=1, removed_at=None))
        path = f"{JOBS}/{job.id}"
        workers = (await client.get(f"{path}/workers")).json()
        evaluation = (await client.get(f"{path}/evaluation")).json()
        checkpoints = (await client.get(f"{path}/checkpoints")).json()
        desk.moved(job, "failed")
        assert (await client.get(f"{path}/workers")).json()["now"] == 0
    assert (workers["now"], workers["wanted"]) == (2, {"min": 1, "max": 4})
    assert workers["sizes"] == [{"step": 0, "workers": 3}, {"step": 40, "workers": 2}]
    assert [(each["time"], each["cause"]) for each in workers["changes"]] == [
        ("1970-01-01T00:00:01.500Z", "start"), ("1970-01-01T00:00:02.500Z", "death"),
    ]  # fmt: skip
    assert evaluation["validation"] == [{"step": 50, "metrics": {"map_at_r": 0.5}}]
    assert (evaluation["state"], evaluation["metrics"], evaluation["model_sha256"]) == ("running", {}, None)
    seen = {"step": 50, "state_sha256": "ab", "seen_at": "1970-01-01T00:00:00.001Z", "removed_at": None}
    assert checkpoints == {"items": [seen]}


async def test_schemas_are_those_of_the_spec_and_of_what_is_answered(connect: Connect) -> None:
    async with connect() as client:
        names = (await client.get("/v1/schemas")).json()["schemas"]
        found = {name: (await client.get(f"/v1/schemas/{name}")).json() for name in names}
        assert kind(await client.get("/v1/schemas/none"))[0] == 422
    assert {"name", "data", "loss"} <= set(found["job"]["properties"])
    assert set(found["event"]["properties"]) == {"seq", "time", "type", "data"}


async def test_artifacts_are_the_files_of_the_run_with_their_digests(connect: Connect) -> None:
    desk = Desk()
    content = bytes(range(256)) * 2000
    async with connect(desk) as client:
        job = desk.job()
        path = f"{JOBS}/{job.id}/artifacts"
        assert (await client.get(path)).json() == {"items": [], "next": None}
        run = desk.desk.store.run_folder(job.id)
        (run / "model").mkdir(parents=True)
        (run / "model" / "weights ü.safetensors").write_bytes(content)
        (run / "run.json").write_text("{}")
        (run / ".tmp-1").write_text("hidden")
        (run / "page.html").write_text("<script>")
        first = (await client.get(f"{path}?limit=2")).json()
        rest = (await client.get(f"{path}?after={first['next']}")).json()
        listed = first["items"] + rest["items"]
        assert [(item["path"], item["size"], item["content_type"]) for item in listed] == [
            ("model/weights ü.safetensors", len(content), "application/octet-stream"),
            ("page.html", 8, "application/octet-stream"), ("run.json", 2, "application/json"),
        ]  # fmt: skip
        whole = await client.get(f"{path}/model/weights ü.safetensors")
        digest = hashlib.sha256(content)
        assert (whole.status_code, whole.content) == (200, content)
        assert whole.headers["etag"] == f'"{digest.hexdigest()}"'
        assert whole.headers["x-content-type-options"] == "nosniff"
        assert whole.headers["content-disposition"].startswith("attachment")

        async def part(header: str, **more: str) -> httpx2.Response:
            return await client.get(f"{path}/model/weights ü.safetensors", headers={"range": header, **more})

        for header, start, stop in (
            ("bytes=0-0", 0, 1), ("bytes=100-299", 100, 300), ("bytes=511990-", 511_990, 512_000),
            ("bytes=-7", 511_993, 512_000), ("bytes=511999-9999999", 511_999, 512_000), ("bytes=-9999999", 0, 512_000),
        ):  # fmt: skip
            some = await part(header)
            assert (some.status_code, some.content) == (206, content[start:stop])
            assert some.headers["content-range"] == f"bytes {start}-{stop - 1}/512000"
        for header in ("bytes=512000-", "bytes=-0"):
            missing = await part(header)
            assert (kind(missing), missing.headers["content-range"]) == (
                (416, "range-not-satisfiable"),
                "bytes */512000",
            )
        for header in ("bytes=2-1", "bytes=0-1,5-6", "lines=1-2", "bytes=-"):
            assert (await part(header)).status_code == 200
        tag = whole.headers["etag"]
        assert [(await part("bytes=0-1", **{"if-range": seen})).status_code for seen in (tag, '"x"')] == [206, 200]
        same = await client.get(f"{path}/model/weights ü.safetensors", headers={"if-none-match": f'"x", W/{tag}'})
        assert (same.status_code, same.content) == (304, b"")


@pytest.mark.parametrize(
    "path",
    [
        "../../raydml.sqlite3", "%2e%2e/%2e%2e/raydml.sqlite3", "..%2f..%2fraydml.sqlite3", "link", "folder/secret",
        "model", "", "%2fetc%2fpasswd", "a%00b", ".tmp-1", "x" * 300, "pipe", "%ff", "model/%2e%2e/run.json",
    ],
)  # fmt: skip
async def test_no_path_leads_out_of_the_run(connect: Connect, home: Path, path: str) -> None:
    desk = Desk()
    async with connect(desk) as client:
        job = desk.job()
        run = desk.desk.store.run_folder(job.id)
        (run / "model").mkdir(parents=True)
        (run / "run.json").write_text("{}")
        (run / ".tmp-1").write_text("hidden")
        secrets = home / "secrets"
        secrets.mkdir()
        (secrets / "secret").write_text("what nobody may read")
        (run / "link").symlink_to(secrets / "secret")
        (run / "folder").symlink_to(secrets)
        os.mkfifo(run / "pipe")
        answer = await client.get(f"{JOBS}/{job.id}/artifacts/{path}")
        assert answer.status_code in (404, 422), answer.text
        assert "nobody" not in answer.text
        listed = [item["path"] for item in (await client.get(f"{JOBS}/{job.id}/artifacts")).json()["items"]]
        assert listed == ["run.json"]
        run.rename(home / "elsewhere")
        run.symlink_to(home / "elsewhere")
        assert (await client.get(f"{JOBS}/{job.id}/artifacts/run.json")).status_code == 404
