"""Wrong requests are refused with the numbers and the way out, and leave nothing behind."""

from __future__ import annotations

import base64
import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from PIL import Image

from raydml.data import Preprocessing
from raydml.models import build_model
from raydml.models.exported import save_model
from raydml.search import Collection
from raydml.spec import ModelSpec
from tests.api.conftest import Connect

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
C = "/v1/collections/c"
RAW = {"content-type": "application/octet-stream"}
NPY = {"content-type": "application/x-npy"}
PACKED = {"content-type": "application/msgpack"}
DIGEST, OTHER = "a" * 64, "b" * 64


def state(home: Path) -> Any:
    """Everything that the collection holds."""
    with Collection.open(home / "collections" / "c") as collection:
        items = [(item.id, item.vector.tolist(), item.payload, item.sequence) for item in collection.scroll()]
        return collection.read(lambda reading: reading.view.state), items


def npy(array: Any, header: bytes | None = None) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    content = file.getvalue()
    return content if header is None else content.replace(b"(2, 4)", header)


UPSERTS: list[tuple[dict[str, Any], int, str]] = [
    ({"ids": [1], "vectors": [[1, 2, 3]]}, 422, r"shape \(n, 4\), not \(1, 3\)"),
    ({"ids": [1, 2], "vectors": [[1, 2, 3, 4], [1, 2]]}, 422, r"lists of 4 numbers each; there are \[2, 4\]"),
    ({"ids": [1], "vectors": [1, 2, 3, 4]}, 422, "shape"),
    ({"ids": [1], "vectors": "abcd"}, 422, "numbers"),
    ({"ids": [1], "vectors": {"a": 1}}, 422, "numbers"),
    ({"ids": [1], "vectors": [[1, 2, 3, None]]}, 422, "numbers"),
    ({"ids": [1], "vectors": [[0, 0, 0, 0]]}, 422, "zero"),
    ({"ids": [1], "vectors": [[1, 2, 3, 1e39]]}, 422, "beyond float32"),
    ({"ids": [1, 1], "vectors": [[1, 2, 3, 4]] * 2}, 422, r"repeat within one request: \[1\]"),
    ({"ids": [], "vectors": []}, 422, "ids: List should have at least 1"),
    ({"ids": [""], "vectors": [[1, 2, 3, 4]]}, 422, "1 to 1024 characters"),
    ({"ids": [1.5], "vectors": [[1, 2, 3, 4]]}, 422, "valid integer"),
    ({"ids": [True], "vectors": [[1, 2, 3, 4]]}, 422, "valid integer"),
    ({"ids": [2**63], "vectors": [[1, 2, 3, 4]]}, 422, "beyond int64"),
    ({"ids": [1, 2], "vectors": [[1, 2, 3, 4]]}, 422, "2 ids for 1 vectors"),
    ({"ids": [1], "vectors": [[1, 2, 3, 4]], "payloads": [{}, {}]}, 422, "2 payloads for 1 ids"),
    ({"ids": [1], "vectors": [[1, 2, 3, 4]], "payloads": [[1]]}, 422, "payloads.0"),
    ({"ids": [1], "vectors": [[1, 2, 3, 4]], "payloads": [{"text": "x" * 2**20}]}, 422, "bytes of JSON"),
    ({"ids": [1], "vectors": [[1, 2, 3, 4]], "model_digest": OTHER}, 409, "come from model bbbbbbbbbbbb"),
    ({"ids": [1], "vectors": [[1, 2, 3, 4]], "path": "/etc/passwd"}, 422, "path: Extra inputs"),
    ({"ids": list(range(6)), "vectors": [[1, 2, 3, 4]] * 6}, 413, "6 points, and 5 are taken"),
    ({"vectors": [[1, 2, 3, 4]]}, 422, "ids: Field required"),
]


async def test_a_refused_write_is_a_problem_and_leaves_nothing_behind(connect: Connect, home: Path) -> None:
    async with connect(max_points=5) as client:
        await client.put(C, json={"dimension": 4, "model_digest": DIGEST})
        await client.post(f"{C}/points", json={"ids": ["kept"], "vectors": [[1, 2, 3, 4]]})
        before = state(home)
        for body, status, words in UPSERTS:
            answer = await client.post(f"{C}/points", json=body, headers={"Idempotency-Key": "same"})
            assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), body
            assert re.search(words, answer.json()["detail"]), answer.text
        for bad in (np.nan, np.inf, -np.inf):
            packed = msgpack.packb({"ids": [1], "vectors": np.array([1, 2, bad, 4], "<f4").tobytes()})
            answer = await client.post(f"{C}/points", content=packed, headers=PACKED)
            assert answer.status_code == 422 and "NaN or an infinity: rows [0]" in answer.json()["detail"]
        for content in (b'{"ids": [1], "vectors": [[NaN, 1, 1, 1]]}', b"[" * 100_000, b"", b"\xff", b'{"a": Infinity}'):
            answer = await client.post(f"{C}/points", content=content, headers={"content-type": "application/json"})
            assert (answer.status_code, answer.json()["type"]) == (400, "urn:raydml:problem:malformed"), content[:30]
        for body in ({"ids": [1], "filter": {"a": 1}}, {}, {"filter": {}}, {"ids": []}, {"filter": {"a": {"near": 1}}}):
            assert (await client.post(f"{C}/points:delete", json=body)).status_code == 422, body
        cut = msgpack.packb({"ids": [1], "vectors": bytes(15)})
        assert "no whole number of vectors" in (await client.post(f"{C}/points", content=cut, headers=PACKED)).text
        assert (await client.post(f"{C}/points", content=b"\xc1", headers=PACKED)).status_code == 400
        assert (
            await client.post(f"{C}/points", content=b"ids=1", headers={"content-type": "text/x"})
        ).status_code == 415
        assert state(home) == before
        taken = {"ids": [1], "vectors": [[1, 2, 3, 4]]}
        assert (await client.post(f"{C}/points", json=taken, headers={"Idempotency-Key": "same"})).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"vectors": [[1, 2, 3]]}, 422, "shape"), ({"vectors": [[0, 0, 0, 0]]}, 422, "zero"),
        ({"vectors": [[1, 2, 3, 4]], "k": 0}, 422, "k: Input should be greater"),
        ({"vectors": [[1, 2, 3, 4]], "k": 1001}, 422, "at most 1000"),
        ({"vectors": [[1, 2, 3, 4]], "k": True}, 422, "k: Input should be a valid integer"),
        ({"vectors": [[1, 2, 3, 4]], "k": 10**30}, 422, "k: "),
        ({"vectors": [[1, 2, 3, 4]], "filter": {"a": {"near": 1}}}, 422, "the condition"),
        ({"vectors": [[1, 2, 3, 4]], "filter": ["a"]}, 422, "filter: Input should be"),
        ({"vectors": [[1, 2, 3, 4]], "score_threshold": "inf"}, 422, "score_threshold"),
        ({"vectors": [[1, 2, 3, 4]], "model_digest": OTHER}, 409, "distances between the two mean nothing"),
        ({"vectors": [[1, 2, 3, 4]], "ids": ["kept"]}, 422, "exactly one"), ({}, 422, "exactly one"),
        ({"ids": ["unknown"]}, 422, "not in the collection"), ({"ids": []}, 422, "at least 1"),
        ({"vectors": [[1, 2, 3, 4]] * 11}, 413, "11 queries, and 10 are taken"),
        ({"ids": ["kept"] * 11}, 413, "11 queries, and 10 are taken"),
        ({"texts": ["a"]}, 422, "knows no model"), ({"texts": ["a" * 10_001]}, 413, "10000 characters"),
        ({"images": ["!"]}, 422, "not base64"), ({"images": ["aGVsbG8="]}, 422, "none of PNG"),
        ({"vectors": [[1, 2, 3, 4]], "url": "http://127.0.0.1"}, 422, "url: Extra inputs"),
    ],
)  # fmt: skip
async def test_a_wrong_query_is_refused(connect: Connect, body: Any, status: int, words: str) -> None:
    async with connect(max_queries=10) as client:
        await client.put(C, json={"dimension": 4, "model_digest": DIGEST})
        await client.post(f"{C}/points", json={"ids": ["kept"], "vectors": [[1, 2, 3, 4]]})
        answer = await client.post(f"{C}/search", json=body)
        in_batch = await client.post(f"{C}/search:batch", json={"searches": [{"ids": ["kept"]}, body]})
    assert (answer.status_code, in_batch.status_code) == (status, status)
    assert words in answer.json()["detail"]


async def test_a_filter_on_a_field_that_nothing_has_finds_nothing(connect: Connect) -> None:
    async with connect() as client:
        await client.put(C, json={"dimension": 4})
        await client.post(f"{C}/points", json={"ids": [1], "vectors": [[1, 2, 3, 4]]})
        found = await client.post(f"{C}/search", json={"vectors": [[1, 2, 3, 4]], "filter": {"nobody.has": 1}})
    assert found.json() == {"results": [[]]}


@pytest.mark.parametrize(
    ("content", "headers", "status", "words"),
    [
        (bytes(15), RAW, 422, "15 bytes are no whole number of vectors"),
        (np.full(4, np.nan, "<f4").tobytes(), RAW, 422, "NaN"),
        (npy(np.array([{}])), NPY, 422, "holds object"),
        (npy(np.zeros((2, 4)), b"(2**60, 4)"), NPY, 400, "no a .npy file"),
        (npy(np.zeros((2, 4)), b"(9, 4)"), NPY, 422, r"of shape (9, 4) in 64 bytes"),
        (npy(np.zeros((2, 4)))[:-1], NPY, 422, "in 63 bytes"), (b"PK\x03\x04", NPY, 400, "no a .npy file"),
        (b"", NPY, 400, "no a .npy file"), (npy(np.ones((1, 2, 4))), NPY, 422, "shape (dimension,) or"),
    ],
)  # fmt: skip
async def test_wrong_binary_queries_are_refused(
    connect: Connect, content: bytes, headers: Any, status: int, words: str
) -> None:
    async with connect() as client:
        await client.put(C, json={"dimension": 4})
        answer = await client.post(f"{C}/search", content=content, headers=headers)
    assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text


async def test_unknown_collections_and_names_that_leave_the_folder_are_refused(connect: Connect, home: Path) -> None:
    Collection.open(home.parent / "outside", 4).close()
    async with connect() as client:
        for path in (C, f"{C}/points", f"{C}/facets/a"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["type"]) == (404, "urn:raydml:problem:no-such-collection")
        assert (await client.post(f"{C}/search", json={"vectors": [[1]]})).status_code == 404
        for name in ("..", "%2e%2e", "..%2f..%2foutside", ".hidden", "a%00b", "a b", "x" * 129):
            assert (await client.put(f"/v1/collections/{name}", json={"dimension": 4})).status_code in (404, 405, 422)
        assert (await client.put(C, json={"run": "../outside"})).status_code == 422
        assert (await client.put(C, json={"run": "nobody"})).status_code == 404
        assert (await client.put(C, json={})).status_code == 422
        (home / "collections").mkdir(exist_ok=True)
        (home / "collections" / "link").symlink_to(home.parent / "outside")
        assert (await client.get("/v1/collections/link")).status_code == 409
        assert (await client.get("/v1/collections")).json()["collections"] in ([], ["link"])


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is this large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def picture(shade: int, size: int = 8, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("L", (size, size), shade).save(file, kind)
    return file.getvalue()


@pytest.fixture
def trained(home: Path) -> str:
    """The digest of a model of a run, whose embeddings have four dimensions."""
    spec = ModelSpec.model_validate({"backbone": {"kind": "linear"}, "dimension": 4})
    preprocessing = Preprocessing.for_images(8, grayscale=True)
    model = build_model(spec, preprocessing.shape, seed=0)
    return save_model(home / "runs" / "run" / "model", model, spec, preprocessing.shape, preprocessing)


async def test_an_image_is_searched_by_the_model_of_its_run(connect: Connect, home: Path, trained: str) -> None:
    gradient = io.BytesIO()
    Image.linear_gradient("L").save(gradient, "PNG")
    async with connect() as client:
        made = await client.put(C, json={"run": "run"})
        assert (made.status_code, made.json()["model_digest"], made.json()["dimension"]) == (201, trained, 4)
        with Collection.open(home / "collections" / "c") as collection:
            vectors = collection.query_vectors(images=[Image.new("L", (8, 8), 200), Image.linear_gradient("L")])
        await client.post(f"{C}/points", json={"ids": ["flat", "gradient"], "vectors": vectors.tolist()})
        upload = await client.post(
            f"{C}/search?k=1", content=gradient.getvalue(), headers={"content-type": "image/png"}
        )
        encoded = [base64.b64encode(each).decode() for each in (picture(200), gradient.getvalue())]
        both = await client.post(f"{C}/search", json={"images": encoded, "k": 1})
        text = await client.post(f"{C}/search", json={"texts": ["a"]})
    assert [[hit["id"] for hit in hits] for hits in upload.json()["results"]] == [["gradient"]]
    assert [[hit["id"] for hit in hits] for hits in both.json()["results"]] == [["flat"], ["gradient"]]
    assert upload.json()["results"][0][0]["score"] == pytest.approx(1)
    assert text.status_code == 422


@pytest.mark.parametrize(
    ("content", "status", "kind"),
    [
        (b"GIF89a not really", 422, "not-an-image"), (b"", 422, "not-an-image"),
        (picture(1)[:45], 422, "not-an-image"), (picture(1, 8, "PPM"), 422, "not-an-image"),
        (picture(1, 101), 413, "image-too-large"), (bomb(50_000, 50_000), 413, "image-too-large"),
        (bomb(12_000, 10_000), 413, "image-too-large"), (bytes(3000), 413, "image-too-large"),
    ],
    ids=["gif in name", "empty", "cut", "a format of others", "large", "bomb", "bomb that Pillow warns of", "long"],
)  # fmt: skip
async def test_what_is_no_image_or_too_large_is_refused_before_it_is_unpacked(
    connect: Connect, trained: str, content: bytes, status: int, kind: str
) -> None:
    async with connect(max_image_pixels=10_000, max_image_bytes=2000) as client:
        await client.put(C, json={"run": "run"})
        answer = await client.post(f"{C}/search", content=content, headers={"content-type": "image/png"})
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:raydml:problem:{kind}"), answer.text


async def test_a_model_outside_of_the_servers_folder_is_not_loaded(connect: Connect, home: Path, trained: str) -> None:
    (home / "runs").rename(home.parent / "elsewhere")
    Collection.open(home / "collections" / "c", model=home.parent / "elsewhere" / "run" / "model").close()
    async with connect() as client:
        answer = await client.post(f"{C}/search", content=picture(1), headers={"content-type": "image/png"})
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:raydml:problem:model-elsewhere")
