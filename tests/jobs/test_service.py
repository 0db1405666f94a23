"""The whole service over real HTTP with a real Ray: jobs from their spec to a collection that is searched by image."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from raydml.files import sha256_file
from tests.jobs.house import House, tiny_spec

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]
EVENTS = {"Accept": "text/event-stream"}


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    """A server with a short path: Ray's sockets are named after it."""
    with (
        tempfile.TemporaryDirectory(prefix="raydml-service-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        House(Path(folder)) as house,
    ):
        yield house


def told(house: House, path: str, last: str | None, most: int) -> list[tuple[str, Any]]:
    """Ids and documents of a stream, until it ends, or until the connection is dropped behind `most` of them."""
    found: list[tuple[str, Any]] = []
    headers = EVENTS if last is None else EVENTS | {"Last-Event-ID": last}
    with httpx2.stream("GET", f"{house.url}{path}", headers=headers, timeout=600) as answer:
        frame: dict[str, str] = {}
        for line in answer.iter_lines():
            if line:
                name, _, value = line.partition(": ")
                frame[name] = value
                continue
            if "data" in frame:
                found.append((frame.get("id", frame.get("event", "")), json.loads(frame["data"])))
                if len(found) == most or frame.get("event") == "end":
                    return found
            frame = {}
    return found


def everything(house: House, path: str, at_a_time: int) -> list[Any]:
    """All documents of a stream, over connections that are dropped again and again."""
    found: list[tuple[str, Any]] = []
    while not found or found[-1][0] != "end":
        found += told(house, path, found[-1][0] if found else None, at_a_time)
    return [document for _, document in found]


def picture(item: int, home: Path) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.load(home / "data" / "tiny.npz")["inputs"][item]).save(file, "PNG")
    return file.getvalue()


def test_a_spec_becomes_a_collection_that_is_searched_by_image(house: House) -> None:
    spec = tiny_spec(house.home, "glyphs", index={"collection": "tiny", "split": "all"})
    job = house.submit(spec, labels={"team": "search"})
    path = f"/v1/jobs/{job}"
    events = everything(house, f"{path}/events", at_a_time=3)
    assert [event["seq"] for event in events[:-1]] == list(range(1, len(events)))
    assert events[-1] == {"state": "succeeded"}
    states = [event["data"]["to"] for event in events[:-1] if event["type"] == "state"]
    assert states == ["queued", "starting", "running", "succeeded"]

    found = house.ask("GET", path).json()
    assert (found["state"], found["progress"]["step"], found["result"]["collection"]) == ("succeeded", 120, "tiny")
    metrics = everything(house, f"{path}/metrics", at_a_time=50)[:-1]
    assert sorted({metric["step"] for metric in metrics if "loss" in metric["data"]}) == list(range(1, 121))
    assert "".join(line["text"] for line in everything(house, f"{path}/logs", at_a_time=5)[:-1])
    workers = house.ask("GET", f"{path}/workers").json()
    assert (workers["now"], workers["sizes"][0]["step"]) == (0, 0)

    evaluation = house.ask("GET", f"{path}/evaluation").json()
    assert evaluation["metrics"] == found["result"]["metrics"]
    assert [each["step"] for each in evaluation["validation"]] == [60, 120]
    weights = house.ask("GET", f"{path}/artifacts/model/model.safetensors")
    assert weights.headers["etag"] == f'"{sha256_file(house.home / "runs" / job / "model" / "model.safetensors")}"'
    assert evaluation["model_sha256"] == found["result"]["model_sha256"] == weights.headers["etag"].strip('"')

    described = house.ask("GET", "/v1/collections/tiny").json()
    assert (described["points"], described["dimension"]) == (160, 8)
    headers = {"content-type": "image/png"}
    for item in (0, 80):
        search = f"{house.url}/v1/collections/tiny/search?k=1"
        answer = httpx2.post(search, content=picture(item, house.home), headers=headers, timeout=600)
        assert answer.status_code == 200, answer.text
        (hit,) = answer.json()["results"][0]
        assert hit["score"] == pytest.approx(1, abs=1e-5), "the picture itself was indexed"


def test_a_job_that_was_paused_or_cancelled_goes_on_from_its_checkpoint_with_the_same_bits(house: House) -> None:
    long = tiny_spec(house.home, "long", train={"steps": 400, "evaluate_every": 200, "checkpoint_every": 10})
    job = house.submit(long)
    house.wait(job, lambda: house.seen(job, "checkpoint") > 0, "leaves a checkpoint")
    assert house.ask("POST", f"/v1/jobs/{job}/pause").status_code == 202
    house.wait(job, lambda: house.states(job)[-1] == "paused", "pauses")
    assert house.ask("POST", f"/v1/jobs/{job}/resume").json()["state"] == "queued"
    known = house.seen(job, "checkpoint")
    house.wait(job, lambda: house.seen(job, "checkpoint") > known, "trains again")
    assert house.ask("POST", f"/v1/jobs/{job}/cancel").status_code == 202
    house.wait(job, lambda: False, "ends")
    assert house.states(job)[-1] == "cancelled"
    refused = house.ask("POST", f"/v1/jobs/{job}/resume")
    assert (refused.status_code, refused.headers["content-type"]) == (409, "application/problem+json")

    fork = house.ask("POST", f"/v1/jobs/{job}/fork", json={"name": "fork"})
    assert fork.status_code == 201, fork.text
    child, parent = fork.json()["id"], fork.json()["parent"]
    step = max(item["step"] for item in house.ask("GET", f"/v1/jobs/{job}/checkpoints").json()["items"])
    assert parent == {"job": job, "step": step}
    whole = house.submit(long)
    house.followed[child] = []
    for each in (child, whole):
        house.wait(each, lambda: False, "ends")
    results = [house.ask("GET", f"/v1/jobs/{each}").json()["result"] for each in (child, whole)]
    assert results[0]["model_sha256"] == results[1]["model_sha256"]


def test_what_training_would_refuse_is_refused_before_it_is_accepted(house: House) -> None:
    too_many = tiny_spec(house.home, batch={"classes": 64, "samples": 4, "virtual_workers": 8})
    elsewhere = tiny_spec(house.home)
    elsewhere["data"] = {**elsewhere["data"], "path": "/etc/passwd"}
    for spec in (too_many, elsewhere):
        answer = house.ask("POST", "/v1/jobs", json={"spec": spec})
        assert answer.status_code == 422, answer.text
    plan = house.ask("POST", "/v1/jobs:plan", json={"spec": tiny_spec(house.home)})
    assert (plan.status_code, plan.json()["batches"]["possible"]) == (200, True)


def test_a_sweep_that_is_paused_and_resumed_ends_with_a_winner_that_is_a_run(house: House) -> None:
    tune = {"space": {"loss.alpha": {"choice": [1.0, 2.0, 4.0]}}, "algorithm": {"kind": "grid"}, "trials": 3}
    spec = tiny_spec(house.home, "alphas", tune=tune, train={"steps": 60, "evaluate_every": 20, "checkpoint_every": 20})
    made = house.ask("POST", "/v1/sweeps", json={"spec": spec})
    assert made.status_code == 201, made.text
    sweep, path = made.json()["id"], made.headers["location"]
    house.followed[sweep] = []
    house.wait(sweep, lambda: house.seen(sweep, "trial") > 0, "makes trials")
    assert house.ask("POST", f"{path}/pause").status_code == 202
    house.wait(sweep, lambda: house.states(sweep)[-1] == "paused", "pauses")
    assert house.ask("POST", f"{path}/resume").json()["state"] == "queued"
    house.wait(sweep, lambda: False, "ends")
    found = house.ask("GET", path).json()
    assert found["state"] == "succeeded", found["reason"]
    board = house.ask("GET", f"{path}/trials").json()
    assert [row["state"] for row in board["items"]] == ["trained"] * 3
    result = found["result"]
    assert result["winner"]["configuration"] == board["best"] == board["items"][0]["configuration"]
    assert result["best_spec"]["loss"]["alpha"] == result["winner"]["values"]["loss.alpha"]
    events = [event["data"]["event"] for event in house.followed[sweep] if event["type"] == "trial"]
    assert (events.count("created"), events.count("trained"), events.count("winner")) == (3, 3, 1)
    weights = house.ask("GET", f"/v1/jobs/{sweep}/artifacts/model/model.safetensors")
    assert weights.headers["etag"] == f'"{result["model_sha256"]}"'
