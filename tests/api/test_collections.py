"""Collections over HTTP answer what the library answers, and what was acknowledged is there."""

from __future__ import annotations

import io
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import msgpack
import numpy as np
import pytest

from raydml.search import DATABASE, Collection
from raydml.search.writer import writing
from tests.api.conftest import Connect

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
VECTORS = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)
PAYLOADS = [{"colour": "red" if row % 3 else "blue", "row": row} for row in range(60)]


async def filled(client: httpx2.AsyncClient, name: str = "faces") -> int:
    """A collection of sixty points; gives the lsn."""
    assert (await client.put(f"/v1/collections/{name}", json={"dimension": 8})).status_code == 201
    body = {"ids": list(range(60)), "vectors": VECTORS.tolist(), "payloads": PAYLOADS}
    answer = await client.post(f"/v1/collections/{name}/points", json=body)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["lsn"])


def slow(query: Any, k: int, rows: Any = range(60)) -> list[int]:
    """Ids of the nearest rows by cosine, by a loop."""

    def cosine(row: int) -> float:
        q, v = np.asarray(query, float), VECTORS[row].astype(float)
        return float(q @ v / np.sqrt((q @ q) * (v @ v)))

    return sorted(rows, key=lambda row: (-cosine(row), row))[:k]


def ids(answer: httpx2.Response) -> list[list[Any]]:
    assert answer.status_code == 200, answer.text
    return [[hit["id"] for hit in hits] for hits in answer.json()["results"]]


async def test_collections_are_made_once_described_listed_and_removed(connect: Connect, home: Path) -> None:
    async with connect() as client:
        for name in ("b", "a", "c"):
            made = await client.put(f"/v1/collections/{name}", json={"dimension": 3, "metric": "l2"})
            assert made.status_code == 201
        again = await client.put("/v1/collections/a", json={"dimension": 3})
        other = await client.put("/v1/collections/a", json={"dimension": 4})
        first = (await client.get("/v1/collections", params={"limit": 2})).json()
        second = (await client.get("/v1/collections", params={"after": first["next"]})).json()
        described = (await client.get("/v1/collections/a")).json()
        assert (await client.delete("/v1/collections/a")).status_code == 204
        gone = [await client.request(method, "/v1/collections/a") for method in ("GET", "DELETE")]
    assert (again.status_code, other.status_code) == (200, 409)
    assert "dimension 3" in other.json()["detail"]
    assert (first, second) == ({"collections": ["a", "b"], "next": "b"}, {"collections": ["c"], "next": None})
    facts = {"name": "a", "dimension": 3, "metric": "l2", "model_digest": None, "points": 0, "lsn": 1}
    assert described == facts
    assert [answer.status_code for answer in gone] == [404, 404]
    assert not (home / "collections" / "a").exists()


async def test_hits_are_those_of_a_loop_however_the_query_is_sent(connect: Connect) -> None:
    queries = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    npy = io.BytesIO()
    np.save(npy, queries.astype(np.float64))
    async with connect() as client:
        await filled(client)
        url = "/v1/collections/faces/search"
        as_json = await client.post(url, json={"vectors": queries.tolist(), "k": 5})
        packed = msgpack.packb({"vectors": queries.tobytes(), "k": 5})
        as_msgpack = await client.post(url, content=packed, headers={"content-type": "application/msgpack"})
        raw = {"content-type": "application/octet-stream"}
        as_raw = await client.post(url, params={"k": 5}, content=queries.tobytes(), headers=raw)
        numpy_file = {"content-type": "application/x-npy"}
        as_npy = await client.post(url, params={"k": 5}, content=npy.getvalue(), headers=numpy_file)
        red = await client.post(
            url, params={"k": 4, "filter": '{"colour": "red"}'}, content=queries.tobytes(), headers=raw
        )
    expected = [slow(query, 5) for query in queries]
    assert [ids(answer) for answer in (as_json, as_msgpack, as_raw, as_npy)] == [expected] * 4
    assert ids(red) == [slow(query, 4, [row for row in range(60) if row % 3]) for query in queries]
    assert as_json.json()["results"][0][0]["payload"] == PAYLOADS[expected[0][0]]


async def test_an_answer_can_be_messagepack_with_vectors_as_bytes(connect: Connect) -> None:
    async with connect() as client:
        await filled(client)
        body = {"ids": [7], "k": 2, "with_vectors": True, "with_payload": False}
        accept = {"accept": "application/msgpack"}
        packed = await client.post("/v1/collections/faces/search", json=body, headers=accept)
        plain = await client.post("/v1/collections/faces/search", json=body)
    (hits,) = msgpack.unpackb(packed.content)["results"]
    nearest = slow(VECTORS[7], 3)[1:]
    assert [hit["id"] for hit in hits] == nearest
    assert np.frombuffer(hits[0]["vector"], "<f4").tolist() == VECTORS[nearest[0]].tolist()
    assert plain.json()["results"][0][0].keys() == {"id", "score", "vector"}
    assert plain.json()["results"][0][0]["vector"] == pytest.approx(VECTORS[nearest[0]].tolist())


async def test_a_batch_of_searches_is_what_each_would_be_alone(connect: Connect) -> None:
    searches = [
        {"vectors": [VECTORS[3].tolist()], "k": 4},
        {"ids": [5, 9], "k": 2, "filter": {"row": {"lt": 30}}},
        {"vectors": [VECTORS[4].tolist()], "k": 4, "with_payload": False},
    ]
    async with connect() as client:
        await filled(client)
        together = (await client.post("/v1/collections/faces/search:batch", json={"searches": searches})).json()
        alone = [(await client.post("/v1/collections/faces/search", json=each)).json() for each in searches]
    assert together["answers"] == alone
    assert [hit["id"] for hit in alone[1]["results"][1]] == slow(VECTORS[9], 3, range(30))[1:]


async def test_recommended_points_are_like_the_positive_ones_and_none_of_them(connect: Connect, home: Path) -> None:
    async with connect() as client:
        await filled(client)
        body = {"positives": [1, 2], "negatives": [3], "k": 5}
        answer = await client.post("/v1/collections/faces/recommend", json=body)
    expected = Collection.open(home / "collections" / "faces").recommend([1, 2], [3], 5)
    assert ids(answer) == [[hit.id for hit in expected]]
    assert not {1, 2, 3} & set(ids(answer)[0])


async def test_points_are_replaced_read_paged_and_removed(connect: Connect) -> None:
    url = "/v1/collections/faces"
    async with connect() as client:
        await filled(client)
        body = {"ids": [0, "new", -1], "vectors": np.ones((3, 8)).tolist(), "payloads": [{"row": 99}, None, {}]}
        lsn = (await client.post(f"{url}/points", json=body)).json()["lsn"]
        wanted = {"ids": ["new", 0, -1], "min_lsn": lsn, "with_vectors": True}
        got = (await client.post(f"{url}/points:get", json=wanted)).json()["points"]
        pages, after = [], None
        while not pages or after:
            page = (
                await client.get(f"{url}/points", params={"limit": 25} | ({"after": after} if after else {}))
            ).json()
            pages.append([point["id"] for point in page["points"]])
            after = page["next"]
        patched = await client.post(f"{url}/points:payload", json={"ids": ["new", 777], "payload": {"row": 7}})
        seven = (await client.get(f"{url}/points", params={"filter": '{"row": 7}'})).json()["points"]
        by_id = await client.post(f"{url}/points:delete", json={"ids": ["new", 777]})
        by_filter = await client.post(f"{url}/points:delete", json={"filter": {"colour": "blue"}})
        left = (await client.get(url)).json()
    assert [(point["id"], point["payload"]) for point in got] == [("new", {}), (0, {"row": 99}), (-1, {})]
    assert got[0]["vector"] == [1.0] * 8
    assert [len(page) for page in pages] == [25, 25, 12]
    assert [each for page in pages for each in page] == [*range(60), "new", -1]
    assert (patched.json()["points"], [point["id"] for point in seven]) == (1, [7, "new"])
    assert (by_id.json()["points"], by_filter.json()["points"]) == (1, 19)
    assert (left["points"], left["lsn"]) == (42, by_filter.json()["lsn"])


async def test_facets_count_the_values_of_an_indexed_field(connect: Connect) -> None:
    async with connect() as client:
        await filled(client)
        without = await client.get("/v1/collections/faces/facets/colour")
        assert (await client.put("/v1/collections/faces/indexes/colour")).status_code == 204
        facet = await client.get("/v1/collections/faces/facets/colour")
    assert without.status_code == 422
    assert facet.json() == {"values": [{"value": "red", "points": 40}, {"value": "blue", "points": 20}]}


async def test_a_named_write_is_done_once(connect: Connect) -> None:
    url, named = "/v1/collections/faces/points", {"Idempotency-Key": "order-1"}
    body = {"ids": [1], "vectors": [[1.0] * 8]}
    async with connect() as client:
        await filled(client)
        first = await client.post(url, json=body, headers=named)
        await client.post(url, json={"ids": [1], "vectors": [[2.0] * 8]})
        again = await client.post(url, json=body, headers=named)
        other = await client.post(url, json={"ids": [2], "vectors": [[1.0] * 8]}, headers=named)
        got = (await client.post(f"{url}:get", json={"ids": [1], "with_vectors": True})).json()["points"]
    assert first.json() == again.json()
    assert (again.status_code, other.status_code) == (200, 422)
    assert "other content" in other.json()["detail"]
    assert got[0]["vector"] == [2.0] * 8, "the repetition was done again"


async def test_a_read_sees_the_lsn_that_it_names_or_is_refused(connect: Connect) -> None:
    async with connect() as client:
        lsn = await filled(client)
        url, query = "/v1/collections/faces/search", {"ids": [0], "k": 1}
        seen = await client.post(url, json={**query, "min_lsn": lsn})
        early = await client.post(url, json={**query, "min_lsn": lsn + 1})
    assert (seen.status_code, early.status_code) == (200, 412)
    assert f"at lsn {lsn}, not {lsn + 1}" in early.json()["detail"]


async def test_an_alias_answers_for_its_collection_and_is_switched_at_once(connect: Connect) -> None:
    async with connect() as client:
        await filled(client, "old")
        await client.put("/v1/collections/new", json={"dimension": 8})
        first = await client.post("/v1/aliases:switch", json={"changes": {"live": "old"}})
        assert ids(await client.post("/v1/collections/live/search", json={"ids": [0], "k": 1})) == [
            slow(VECTORS[0], 2)[1:]
        ]
        kept = await client.delete("/v1/collections/old")
        taken = await client.put("/v1/collections/live", json={"dimension": 8})
        changes = {"changes": {"live": "new"}, "expected": first.json()["generation"]}
        second = await client.post("/v1/aliases:switch", json=changes)
        late = await client.post("/v1/aliases:switch", json=changes)
        now = (await client.get("/v1/collections/live")).json()
        back = await client.post("/v1/aliases:rollback", json={})
        missing = await client.post("/v1/aliases:switch", json={"changes": {"live": "nowhere"}})
        listed = (await client.get("/v1/aliases")).json()
    assert (kept.status_code, taken.status_code, second.status_code) == (409, 409, 200)
    assert (now["name"], now["points"]) == ("new", 0)
    assert (late.status_code, back.json()["aliases"], missing.status_code) == (409, {"live": "old"}, 422)
    assert listed == back.json()


async def test_a_collection_that_was_replaced_is_opened_anew(connect: Connect) -> None:
    async with connect() as client:
        await filled(client)
        await client.delete("/v1/collections/faces")
        await client.put("/v1/collections/faces", json={"dimension": 8})
        assert (await client.get("/v1/collections/faces")).json()["points"] == 0
        assert ids(await client.post("/v1/collections/faces/search", json={"vectors": [[1.0] * 8]})) == [[]]


async def test_a_write_that_another_process_holds_up_may_be_sent_again_and_damage_is_the_servers_failure(
    connect: Connect, home: Path
) -> None:
    folder, body = home / "collections" / "faces", {"ids": [1], "vectors": [[1.0] * 8]}
    async with connect(patience=0.05) as client:
        await filled(client)
        with writing(folder, 0):
            busy = await client.post("/v1/collections/faces/points", json=body)
        after = await client.post("/v1/collections/faces/points", json=body)
        with closing(sqlite3.connect(folder / DATABASE, isolation_level=None)) as connection:
            connection.execute("UPDATE points SET payload = '{}' WHERE id = 7")
        damaged = await client.post("/v1/collections/faces/points:get", json={"ids": [7]})
    assert (busy.status_code, busy.headers["retry-after"], after.status_code) == (503, "1", 200)
    assert (damaged.status_code, damaged.json()["type"]) == (500, "urn:raydml:problem:collection-damaged")
    assert "restore it from a snapshot" in damaged.json()["detail"]
