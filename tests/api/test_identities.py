"""Classes, pairs, identities, duplicates and snapshots over HTTP are those of the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import msgpack
import numpy as np
import pytest

from raydml.search import Collection, identities, insight
from tests.api.conftest import Connect

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
RANDOM = np.random.default_rng(0)
PEOPLE = np.arange(400) // 10
VECTORS = (RANDOM.standard_normal((40, 64))[PEOPLE] + 0.2 * RANDOM.standard_normal((400, 64))).astype(np.float32)
VECTORS[5] = VECTORS[4]
STRANGER = RANDOM.standard_normal(64)
C = "/v1/collections/people"


@pytest.fixture
def people(home: Path) -> Any:
    """Ten points of each of forty people, the vector of one of them twice."""
    with Collection.open(home / "collections" / "people", 64) as collection:
        collection.upsert(range(400), VECTORS, [{"person": f"p{person}"} for person in PEOPLE])
        yield collection


def good(answer: httpx2.Response) -> Any:
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


async def test_a_query_is_given_the_class_of_its_neighbours_or_none(connect: Connect, people: Collection) -> None:
    near, far = VECTORS[17] + 0.01, STRANGER
    body = {"field": "person", "vectors": [near.tolist(), far.tolist()], "k": 9, "least_score": 0.5}
    async with connect() as client:
        results = good(await client.post(f"{C}/classify", json=body))["results"]
        refused = await client.post(f"{C}/classify", json={**body, "least_share": 2})
    assert [(one["label"], one["share"]) for one in results] == [("p1", 1.0), (None, 0.0)]
    assert [hit["id"] // 10 for hit in results[0]["hits"]] == [1] * 9
    assert refused.status_code == 422


async def test_pairs_are_verified_by_a_threshold_that_is_calibrated_on_the_collection(
    connect: Connect, people: Collection
) -> None:
    async with connect() as client:
        asked = {"field": "person", "kind": "pairs", "false_accept_rate": 0.01}
        threshold = good(await client.post(f"{C}/calibrate", json=asked))
        pairs = [[0, 9], [0, 399], [4, 5]]
        verdicts = good(await client.post(f"{C}/verify", json={"pairs": pairs, "threshold": threshold}))["results"]
        own = {"pairs": pairs[2:], "threshold": {"field": "person", "score": 2.0}}
        never = good(await client.post(f"{C}/verify", json=own))["results"]
        unknown = await client.post(f"{C}/verify", json={"pairs": [[0, "nobody"]], "threshold": threshold})
        rare = await client.post(f"{C}/calibrate", json={**asked, "false_accept_rate": 1e-9})
    assert threshold["score"] == identities.calibrate_pairs(people, "person", 0.01).score
    assert [verdict["same"] for verdict in verdicts] == [True, False, True]
    assert (verdicts[2]["score"], never[0]["same"]) == (pytest.approx(1), False)
    assert (unknown.status_code, rare.status_code) == (422, 422)
    assert "impostors" in rare.json()["detail"]


async def test_somebody_known_is_identified_and_a_stranger_is_not(connect: Connect, people: Collection) -> None:
    async with connect() as client:
        asked = {"field": "person", "kind": "identify", "false_accept_rate": 0.05}
        threshold = good(await client.post(f"{C}/calibrate", json=asked))
        query = {"threshold": threshold, "vectors": [(VECTORS[42] + 0.01).tolist(), STRANGER.tolist()], "k": 2}
        found = good(await client.post(f"{C}/identify", json=query))["results"]
        packed = {**query, "vectors": (VECTORS[42:43] + 0.01).tobytes()}
        headers = {"content-type": "application/msgpack"}
        again = good(await client.post(f"{C}/identify", content=msgpack.packb(packed), headers=headers))["results"]
    assert [one["identity"] for one in found] == ["p4", None]
    assert len({hit["payload"]["person"] for hit in found[0]["hits"]}) == 2
    assert again == found[:1]


async def test_duplicates_are_found_in_groups(connect: Connect, people: Collection) -> None:
    async with connect() as client:
        found = good(await client.post(f"{C}/duplicates", json={"threshold": 0.99999}))
        loose = good(await client.post(f"{C}/duplicates", json={"threshold": 0.5}))
        refused = await client.post(f"{C}/duplicates", json={"threshold": None})
    assert found == {"groups": [[4, 5]]}
    assert loose["groups"] == insight.duplicates(people, 0.5)
    assert refused.status_code == 422


async def test_a_snapshot_outlives_its_collection_and_becomes_a_new_one(
    connect: Connect, people: Collection, home: Path
) -> None:
    async with connect() as client:
        assert (await client.put(f"{C}/snapshots/monday")).status_code == 201
        taken = await client.put(f"{C}/snapshots/monday")
        good(await client.post(f"{C}/points:delete", json={"ids": list(range(300))}))
        await client.delete(C)
        assert good(await client.get(f"{C}/snapshots")) == {"snapshots": ["monday"]}
        made = good(await client.post(f"{C}/snapshots/monday/restore", json={"to": "again"}))
        twice = await client.post(f"{C}/snapshots/monday/restore", json={"to": "again"})
        outside = await client.post(f"{C}/snapshots/monday/restore", json={"to": "../again"})
        stats = good(await client.get("/v1/collections/again/stats"))
        assert (await client.delete(f"{C}/snapshots/monday")).status_code == 204
        gone = await client.post(f"{C}/snapshots/monday/restore", json={"to": "third"})
    assert (made["name"], made["points"], stats["points"]) == ("again", 400, 400)
    assert [answer.status_code for answer in (taken, twice, outside, gone)] == [409, 409, 422, 404]
    assert sorted(path.name for path in (home / "collections").iterdir() if path.is_dir()) == ["again"]
