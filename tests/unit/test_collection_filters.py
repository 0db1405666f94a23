"""Filters, groups and recommendations: against Qdrant's own in-memory engine, and against loops where it says less."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydml.errors import CollectionError
from raydml.search import Collection

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from qdrant_client import QdrantClient, models

pytestmark = pytest.mark.timeout(300)
RANDOM = np.random.default_rng(5)
COUNT, DIMENSION = 240, 12
VECTORS = RANDOM.standard_normal((COUNT, DIMENSION)).astype(np.float32)


def payload(row: int) -> dict[str, Any]:
    made: dict[str, Any] = {"class": f"c{row % 7}", "number": row, "ratio": row / 16, "even": row % 2 == 0}
    made["camera"] = {"name": f"n{row % 3}", "angle": row % 90}
    if row % 4:
        made["tags"] = [f"t{row % 5}", f"t{row % 3}"]
    if row % 6 == 0:
        made["objects"] = [{"kind": "car", "size": row % 9}, {"kind": "dog", "size": 8 - row % 9}]
    return made


PAYLOADS = [payload(row) for row in range(COUNT)]


@pytest.fixture(scope="module", params=["no index", "indexed"])
def collection(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Collection:
    made = Collection.open(tmp_path_factory.mktemp("filters") / "c", DIMENSION, "cosine")
    if request.param == "indexed":
        for field in ("class", "camera.name", "tags"):
            made.index_payload(field)
    for start in range(0, COUNT, 80):
        rows = slice(start, start + 80)
        made.upsert(range(COUNT)[rows], VECTORS[rows], PAYLOADS[rows])
        if start < 160:
            made.seal()
    if request.param == "indexed":
        for field in ("number", "even", "camera.angle"):
            made.index_payload(field)
    made.check()
    return made


@pytest.fixture(scope="module")
def qdrant() -> Any:
    client = QdrantClient(":memory:")
    client.create_collection("c", vectors_config=models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE))
    points = [models.PointStruct(id=i, vector=VECTORS[i].tolist(), payload=PAYLOADS[i]) for i in range(COUNT)]
    client.upsert("c", points)
    yield client
    client.close()


def random_filter(random_: random.Random, depth: int = 0) -> tuple[dict[str, Any], Any]:
    """The same filter, ours and Qdrant's."""
    if depth < 2 and random_.random() < 0.5:
        ours: dict[str, Any] = {}
        theirs: dict[str, Any] = {}
        for name in random_.sample(["must", "should", "must_not"], random_.randint(1, 3)):
            parts = [random_filter(random_, depth + 1) for _ in range(random_.randint(1, 3))]
            ours[name], theirs[name] = [part[0] for part in parts], [part[1] for part in parts]
        return ours, models.Filter(**theirs)
    return random_.choice([match, match_any, within, exists, nested])(random_)


def match(random_: random.Random) -> tuple[dict[str, Any], Any]:
    field, value = random_.choice(
        [("class", "c3"), ("even", True), ("camera.name", "n1"), ("tags", "t2"), ("number", 17), ("absent", "x")]
    )
    return {field: value}, models.FieldCondition(key=field, match=models.MatchValue(value=value))


def match_any(random_: random.Random) -> tuple[dict[str, Any], Any]:
    field, values = random_.choice([("class", ["c1", "c2"]), ("tags", ["t0", "t4"]), ("number", [3, 5, 200])])
    return {field: values}, models.FieldCondition(key=field, match=models.MatchAny(any=values))


def within(random_: random.Random) -> tuple[dict[str, Any], Any]:
    field = random_.choice(["number", "ratio", "camera.angle"])
    low = random_.randint(-5, 120)
    bounds = random_.choice([{"gte": low}, {"lt": low}, {"gt": low - 20, "lte": low + 3}])
    return {field: bounds}, models.FieldCondition(key=field, range=models.Range(**bounds))


def exists(random_: random.Random) -> tuple[dict[str, Any], Any]:
    field = random_.choice(["tags", "objects", "class"])
    empty = models.IsEmptyCondition(is_empty=models.PayloadField(key=field))
    return {field: {"exists": True}}, models.Filter(must_not=[empty])


def nested(random_: random.Random) -> tuple[dict[str, Any], Any]:
    kind, size = random_.choice(["car", "dog"]), random_.randint(0, 8)
    inner = [
        models.FieldCondition(key="kind", match=models.MatchValue(value=kind)),
        models.FieldCondition(key="size", range=models.Range(gte=size)),
    ]
    theirs = models.NestedCondition(nested=models.Nested(key="objects", filter=models.Filter(must=inner)))
    return {"nested": {"path": "objects", "filter": {"kind": kind, "size": {"gte": size}}}}, theirs


def as_filter(condition: Any) -> Any:
    return condition if isinstance(condition, models.Filter) else models.Filter(must=[condition])


def test_a_hundred_random_filters_allow_what_qdrant_allows(collection: Collection, qdrant: Any) -> None:
    random_ = random.Random(2)
    sizes = []
    for number in range(100):
        ours, theirs = random_filter(random_)
        query = VECTORS[number] + 0.1
        expected = qdrant.query_points("c", query=query.tolist(), query_filter=as_filter(theirs), limit=15).points
        found = collection.search([query], k=15, filter=ours)[0]
        assert [hit.id for hit in found] == [point.id for point in expected], ours
        assert [hit.score for hit in found] == pytest.approx([point.score for point in expected], abs=1e-5)
        assert collection.count(ours) == qdrant.count("c", count_filter=as_filter(theirs)).count, ours
        sizes.append(len(found))
    assert sum(0 < size < 15 for size in sizes) > 5


def test_one_hit_for_each_class_as_qdrant_groups_them(collection: Collection, qdrant: Any) -> None:
    for number in range(20):
        query, limit = VECTORS[number] + 0.05, 1 + number % 9
        groups = qdrant.query_points_groups(
            "c", group_by="class", query=query.tolist(), limit=limit, group_size=1
        ).groups
        found = collection.search([query], k=limit, group_by="class")[0]
        assert [hit.id for hit in found] == [group.hits[0].id for group in groups]
        assert len({hit.payload["class"] for hit in found}) == min(7, limit)


def test_recommendations_are_qdrants(collection: Collection, qdrant: Any) -> None:
    for number in range(20):
        positives, negatives = [number, number + 30], [number + 60, number + 90][: number % 3]
        given = models.RecommendInput(
            positive=positives, negative=negatives, strategy=models.RecommendStrategy.AVERAGE_VECTOR
        )
        expected = qdrant.query_points("c", query=models.RecommendQuery(recommend=given), limit=8).points
        found = collection.recommend(positives, negatives, k=8)
        assert [hit.id for hit in found] == [point.id for point in expected]


def test_filters_that_qdrant_does_not_have(collection: Collection) -> None:
    expected = [row for row in range(COUNT) if {"name": f"n{row % 3}", "angle": row % 90} == {"name": "n1", "angle": 4}]
    assert [
        item.id for item in collection.scroll(filter={"camera": {"equals": {"name": "n1", "angle": 4}}})
    ] == expected
    assert collection.count({"class": {"gte": "c2", "lt": "c4"}}) == sum(row % 7 in (2, 3) for row in range(COUNT))
    assert collection.count({"absent": 1}) == 0
    assert collection.count({"must_not": [{"absent": 1}]}) == COUNT
    assert collection.count({"objects.kind": "car"}) == COUNT // 6
    assert collection.count({}) == COUNT
    assert collection.search(VECTORS[:2], filter={"absent": 1}) == [[], []]


@pytest.mark.parametrize(
    "filter",
    [{"must": {"a": 1}}, {"a": {"near": 3}}, {"a": {"gte": True}}, {"a": {"gte": 1, "lt": "b"}}, {"a": {"gte": [1]}},
     {"nested": {"path": "a"}}, {"should": ["a"]}, {"a": {"gte": float("nan")}}, {1: 2}, ["a"]],
)  # fmt: skip
def test_what_is_no_filter_is_refused(collection: Collection, filter: Any) -> None:
    for use in (collection.count, lambda wrong: collection.search(VECTORS[:1], filter=wrong)):
        with pytest.raises(CollectionError):
            use(filter)


def test_filters_nested_without_end_are_refused(collection: Collection) -> None:
    filter: dict[str, Any] = {"a": 1}
    for _ in range(100):
        filter = {"must": [filter]}
    with pytest.raises(CollectionError, match="deep"):
        collection.count(filter)


def test_a_filter_sees_changes_at_once(tmp_path: Path) -> None:
    collection = Collection.open(tmp_path / "c", 1)
    collection.index_payload("a")
    collection.upsert([1, 2, 3], [[1.0], [2.0], [3.0]], [{"a": 1, "b": 2}, {"a": [1, 2]}, {"a": True}])
    assert [collection.count({"a": value}) for value in (1, 2, True, [1, 2], [])] == [2, 1, 1, 2, 0]
    assert collection.facet("a") == [(1, 2), (True, 1), (2, 1)]
    assert collection.set_payload([1, 9], {"a": 5}) == 1
    assert collection.get([1])[0].payload == {"a": 5, "b": 2}
    collection.set_payload([2], {"c": None}, merge=False)
    assert [collection.count({"a": value}) for value in (1, 2, 5)] == [0, 0, 1]
    assert collection.delete(filter={"a": {"gte": 5}}) == 1
    assert collection.ids == [2, 3]
    assert collection.count({"c": None}) == 1
    collection.check()
    with pytest.raises(CollectionError, match="has no index"):
        collection.facet("c")


def test_thresholds_and_vectors_come_as_asked(tmp_path: Path) -> None:
    for metric, query, threshold, expected in (
        ("l2", 0.0, 2.0, [1, 2]), ("inner_product", 1.0, 2.0, [3, 2]), ("cosine", 1.0, 0.5, [1, 2, 3]),
    ):  # fmt: skip
        collection = Collection.open(tmp_path / str(metric), 1, metric)  # type: ignore[arg-type]
        collection.upsert([1, 2, 3, 4], [[1.0], [2.0], [3.0], [-5.0]])
        found = collection.search([[query]] if query else [[0.0]], score_threshold=threshold, with_vectors=True)[0]
        assert [hit.id for hit in found] == expected
        assert [hit.vector.tolist() for hit in found] == [[float(i)] for i in expected]  # type: ignore[union-attr]
    with pytest.raises(CollectionError, match="score_threshold"):
        collection.search([[1.0]], score_threshold=float("nan"))
