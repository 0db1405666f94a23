"""What a service needs beside searching: shadows, exports, explanations, compaction, metrics, bodies that dawdle."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from api.service import Service
from raydml.data import Preprocessing
from raydml.jobs.ids import DEFAULT_PROJECT, new_id
from raydml.models import build_model
from raydml.models.exported import save_model
from raydml.search import Collection, insight, shadow
from raydml.search.items import Item
from raydml.spec import ModelSpec
from tests.api.conftest import Connect

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]
RANDOM = np.random.default_rng(0)
PEOPLE = np.arange(60) // 6
VECTORS = (RANDOM.standard_normal((10, 8))[PEOPLE] + 0.4 * RANDOM.standard_normal((60, 8))).astype(np.float32)
C = "/v1/collections/people"


@pytest.fixture
def people(home: Path) -> Any:
    """Six points of each of ten people, each with a small picture in the server's folder."""
    (home / "pictures").mkdir(parents=True)
    payloads = []
    for row, person in enumerate(PEOPLE.tolist()):
        shades = np.clip(25 * person + RANDOM.integers(0, 60, (8, 8)), 0, 255).astype(np.uint8)
        Image.fromarray(shades).save(home / "pictures" / f"{row}.png")
        payloads.append({"person": f"p{person}", "picture": f"pictures/{row}.png"})
    with Collection.open(home / "collections" / "people", 8) as collection:
        collection.upsert(range(60), VECTORS, payloads)
        yield collection


@pytest.fixture
def run(home: Path) -> str:
    """A run with a model of four dimensions: its digest."""
    spec = ModelSpec.model_validate({"backbone": {"kind": "linear"}, "dimension": 4})
    preprocessing = Preprocessing.for_images(8, grayscale=True)
    model = build_model(spec, preprocessing.shape, seed=0)
    return save_model(home / "runs" / "newer" / "model", model, spec, preprocessing.shape, preprocessing)


def good(answer: httpx2.Response) -> Any:
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


async def test_a_shadow_is_filled_in_parts_compared_and_put_in_the_collections_place(
    connect: Connect, home: Path, people: Collection, run: str
) -> None:
    filling = {"run": "newer", "field": "picture", "kind": "image", "limit": 40}
    report = {"field": "person", "k": 5, "queries": 50, "false_accept_rate": 0.3, "seed": 3}
    async with connect() as client:
        await client.post("/v1/aliases:switch", json={"changes": {"faces": "people", "other": "people"}})
        first = good(await client.put(f"{C}/shadows/younger", json=filling))
        second = good(await client.put("/v1/collections/faces/shadows/younger", json=filling))
        again = good(await client.put(f"{C}/shadows/younger", json=filling))
        compared = good(await client.post(f"{C}/shadows/younger/report", json=report))
        switched = good(await client.post(f"{C}/shadows/younger/switch", json={"alias": "faces"}))
        twice = await client.post(f"{C}/shadows/younger/switch", json={"alias": "faces"})
        back = good(await client.post("/v1/aliases:rollback", json={}))
        itself = await client.put(f"{C}/shadows/people", json=filling)
        nobody = await client.post(f"{C}/shadows/nobody/report", json=report)
    assert first == {"embedded": 40, "complete": False, "points": 40}
    assert second == {"embedded": 20, "complete": True, "points": 60}
    assert again == {"embedded": 0, "complete": True, "points": 60}
    assert switched["aliases"] == {"faces": "younger", "other": "people"}
    assert back["aliases"] == {"faces": "people", "other": "people"}
    assert (twice.status_code, twice.json()["type"]) == (409, "urn:raydml:problem:aliases-changed")
    assert (itself.status_code, nobody.status_code) == (422, 404)

    def picture(item: Item) -> Any:
        return Image.open(home / item.payload["picture"])

    with Collection.open(home / "collections" / "younger") as younger:
        own = Collection.open(home / "own", model=home / "runs" / "newer" / "model")
        assert shadow.fill(people, own, picture) == 60
        mine, theirs = ({item.id: item for item in each.scroll()} for each in (own, younger))
        assert younger.model_digest == run
        assert all(np.allclose(mine[name].vector, theirs[name].vector, atol=1e-6) for name in mine)
        assert [theirs[name].payload for name in range(60)] == [item.payload for item in people.scroll()]
        expected = shadow.compare(people, younger, **report)
    assert compared["shadow"]["right"] == expected.shadow.right
    assert (compared["better"], compared["worse"]) == (expected.better, expected.worse)
    assert compared["current"]["threshold"]["score"] == expected.current.threshold.score  # type: ignore[union-attr]


async def test_a_shadow_reads_no_file_outside_of_its_projects_folder(
    connect: Connect, home: Path, people: Collection, run: str
) -> None:
    Image.new("L", (8, 8)).save(home.parent / "secret.png")
    theirs = home / "projects" / new_id("prj") / "theirs.png"  # the default project's folder is the server's
    theirs.parent.mkdir(parents=True)
    Image.new("L", (8, 8)).save(theirs)
    (home / "link.png").symlink_to(theirs)
    shared = [f"{folder}/p.png" for folder in ("runs/job", "uploads", "studies/job")]  # by all projects
    for path in shared:
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(home / path)
    inside = (str(theirs.relative_to(home)), str(theirs), "link.png", *shared)
    async with connect() as client:
        for picture in ("../secret.png", str(home.parent / "secret.png"), "pictures/none.png", 7, *inside):
            people.set_payload([0], {"picture": picture})
            filling = {"run": "newer", "field": "picture", "kind": "image"}
            answer = await client.put(f"{C}/shadows/younger", json=filling)
            assert (answer.status_code, answer.json()["type"]) == (422, "urn:raydml:problem:no-input"), picture


async def test_explanations_and_hard_negatives_are_those_of_the_library(
    connect: Connect, home: Path, people: Collection
) -> None:
    query = {"field": "person", "k": 4, "vectors": VECTORS[:2].tolist()}
    async with connect() as client:
        explained = good(await client.post(f"{C}/explain", json=query))["results"]
        exported = await client.post(f"{C}/hard-negatives", json={"field": "person", "k": 3})
        none = await client.post(f"{C}/hard-negatives", json={"field": "nothing"})
    expected = insight.explain(people, "person", 4, vectors=VECTORS[:2])
    assert [one["margin"] for one in explained] == [one.margin for one in expected]
    assert [one["hubness"] for one in explained] == [one.hubness for one in expected]
    insight.export_hard_negatives(people, "person", home / "own.jsonl", 3)
    assert exported.headers["content-type"].startswith("application/x-ndjson")
    assert exported.content == (home / "own.jsonl").read_bytes()
    assert len(json.loads(exported.text.splitlines()[0])["negatives"]) == 3
    assert none.status_code == 422


async def test_a_collection_is_added_once_and_compacted(connect: Connect, home: Path) -> None:
    async with connect() as client:
        made = await client.post("/v1/collections", json={"name": "c", "dimension": 4})
        twice = await client.post("/v1/collections", json={"name": "c", "dimension": 4})
        with Collection.open(home / "collections" / "c") as collection:
            for start in (0, 10):
                collection.upsert(range(start, start + 10), RANDOM.standard_normal((10, 4)))
                collection.seal()
        await client.post("/v1/collections/c/points:delete", json={"ids": [3]})
        report = good(await client.post("/v1/collections/c/compact"))
        nothing = good(await client.post("/v1/collections/c/compact"))
        points = good(await client.get("/v1/collections/c"))["points"]
    assert (made.status_code, twice.status_code) == (201, 409)
    assert report == {"segments": 2, "rows": 20, "kept": 19}
    assert (nothing["segments"], points) == (0, 19)


async def test_concurrent_questions_of_one_kind_share_a_call(connect: Connect, people: Collection) -> None:
    apps: list[FastAPI] = []
    threshold = {"field": "person", "score": 0.5}
    async with connect(apps.append) as client:
        for path, more in (("classify", {"field": "person"}), ("identify", {"threshold": threshold})):
            service: Service = apps[0].state.service
            before = service.searches.calls
            asked = [{"vectors": [vector.tolist()], **more} for vector in VECTORS[:12]]
            answers = await asyncio.gather(*(client.post(f"{C}/{path}", json=body) for body in asked))
            assert service.searches.calls - before < 12
            alone = [good(await client.post(f"{C}/{path}", json=body)) for body in asked]
            assert [good(answer) for answer in answers] == alone


async def test_metrics_count_answers_queues_and_collections(connect: Connect, people: Collection) -> None:
    async with connect() as client:
        for body in ({"ids": [1]}, {"ids": [2]}, {"ids": ["nobody"]}):
            await client.post(f"{C}/search", json=body)
        answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        re.sub(r'process="\d+",?', "", name).replace(",}", "}"): number
        for name, number in re.findall(r"^(\w+\{.*\}) (\S+)$", answer.text, re.MULTILINE)
    }
    route = 'route="/v1/collections/{name}/search"'
    assert samples[f'raydml_requests_total{{method="POST",{route},status="200"}}'] == "2"
    assert samples[f'raydml_requests_total{{method="POST",{route},status="422"}}'] == "1"
    assert samples[f"raydml_request_seconds_count{{{route}}}"] == "3"
    assert samples[f'raydml_request_seconds_bucket{{{route},le="+Inf"}}'] == "3"
    assert samples["raydml_queries_total{}"] == "3"
    assert samples['raydml_waiting{queue="queries"}'] == "0"
    people_of = f'project="{DEFAULT_PROJECT}",collection="people"'
    assert samples[f"raydml_collection_points{{{people_of}}}"] == "60"
    assert samples[f"raydml_collection_search_high{{{people_of}}}"] == "1.0"


async def test_a_body_that_does_not_arrive_in_time_is_refused_and_its_connection_closed(
    connect: Connect, people: Collection
) -> None:
    async def dribbled() -> AsyncIterator[bytes]:
        yield b'{"ids":'
        await asyncio.Event().wait()

    async with connect(body_seconds=0.05) as client:
        answer = await client.post(f"{C}/search", content=dribbled(), headers={"content-type": "application/json"})
        after = await client.post(f"{C}/search", json={"ids": [1]})
    assert (answer.status_code, answer.json()["type"]) == (408, "urn:raydml:problem:body-too-slow")
    assert answer.headers["connection"] == "close"
    assert "7 bytes" in answer.json()["detail"]
    assert after.status_code == 200
