"""Collections: exact, durable, and deaf to wrong requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from raydml.errors import CollectionError, ModelMismatch
from raydml.search import Collection, queries
from raydml.search.items import Metric

pytestmark = pytest.mark.timeout(300)
RANDOM = np.random.default_rng(0)
VECTORS = RANDOM.standard_normal((200, 16)).astype(np.float32)
VECTORS[150:160] = VECTORS[0]


def filled(path: Path, metric: Any = "cosine", **options: Any) -> Collection:
    collection = Collection.open(path, 16, metric, **options)
    collection.upsert(range(200), VECTORS, [{"colour": row % 3, "even": row % 2 == 0} for row in range(200)])
    return collection


def slow(query: Any, rows: list[int], metric: str, k: int) -> list[int]:
    def far(row: int) -> float:
        q, v = query.astype(float), VECTORS[row].astype(float)
        if metric == "l2":
            return float(((q - v) ** 2).sum())
        return -float((q * v).sum() / (np.sqrt((v * v).sum()) if metric == "cosine" else 1.0))

    return sorted(rows, key=lambda row: (far(row), row))[:k]


@pytest.mark.parametrize("metric", ["cosine", "l2", "inner_product"])
def test_hits_are_those_of_a_loop_and_survive_reopening(tmp_path: Path, metric: Any) -> None:
    filled(tmp_path / "c", metric)
    collection = Collection.open(tmp_path / "c")
    queries = np.concatenate([RANDOM.standard_normal((20, 16)), VECTORS[:2].astype(float)]).astype(np.float32)
    together = collection.search(queries, k=12)
    for query, hits in zip(queries, together, strict=True):
        assert [hit.id for hit in hits] == slow(query, list(range(200)), metric, 12)
        assert collection.search([query], k=12) == [hits]
        red = collection.search([query], k=12, filter={"colour": [0, 2], "even": True})[0]
        assert [hit.id for hit in red] == slow(query, [r for r in range(200) if r % 3 != 1 and not r % 2], metric, 12)
    assert collection.search(VECTORS[:1], k=1)[0][0].score == pytest.approx(
        {"cosine": 1, "l2": 0, "inner_product": together[20][0].score}[metric]
    )


def test_equal_vectors_come_by_insertion_and_an_item_is_not_its_own_hit(tmp_path: Path) -> None:
    collection = filled(tmp_path / "c")
    assert [hit.id for hit in collection.search(VECTORS[:1], k=11)[0]] == [0, *range(150, 160)]
    assert [hit.id for hit in collection.search(ids=[151], k=10)[0]] == [0, 150, *range(152, 160)]
    assert [hit.id for hit in collection.search(ids=[151], k=4, filter={"even": False})[0]] == [153, 155, 157, 159]
    assert len(collection.search(ids=[0], k=10**6)[0]) == 199


def test_an_item_that_was_written_again_keeps_its_place_among_equal_ones(tmp_path: Path) -> None:
    collection = Collection.open(tmp_path / "c", 2)
    written = []
    for round in range(4):  # rows of an item in several segments, and unsealed ones
        for identifier in ("abc", "ca", "b", "dba")[round]:
            collection.upsert([identifier], [[1.0, 1.0]])
            written += [identifier] if identifier not in written else []
            for k in range(1, len(written) + 1):
                for filter in (None, {}):
                    hits = collection.search([[1.0, 1.0]], k=k, filter=filter)[0]
                    assert [hit.id for hit in hits] == written[:k]
        if round < 2:
            collection.seal()
    assert written == list("abcd")


@pytest.mark.parametrize("metric", ["cosine", "l2", "inner_product"])
def test_hits_do_not_depend_on_how_many_segments_hold_the_rows(tmp_path: Path, metric: Metric) -> None:
    vectors = np.random.default_rng(2).integers(-2, 3, (400, 3)) + np.float32([0.5, 0, 0])  # many are equal
    whole, parts = (Collection.open(tmp_path / name, 3, metric) for name in ("whole", "parts"))
    whole.upsert(range(400), vectors, [{"row": row} for row in range(400)])
    for start in range(0, 400, 90):
        stop = min(start + 90, 400)
        parts.upsert(range(start, stop), vectors[start:stop], [{"row": row} for row in range(start, stop)])
        parts.seal()
    for collection in (whole, parts):
        collection.delete(range(0, 400, 7))
    for k in (1, 5, 60, 400):
        for filter in (None, {"row": {"gte": 380}}, {"row": {"lt": 350}}):
            assert parts.search(vectors[:20], k=k, filter=filter) == whole.search(vectors[:20], k=k, filter=filter)


def test_the_blas_threshold_of_the_process_is_given_back(tmp_path: Path) -> None:
    before = faiss.cvar.distance_compute_blas_threshold
    filled(tmp_path / "c").search(VECTORS[:64])
    assert faiss.cvar.distance_compute_blas_threshold == before


def test_changes_are_kept_in_order(tmp_path: Path) -> None:
    collection = Collection.open(tmp_path / "c", 2)
    assert collection.search([[1.0, 2.0]]) == [[]]
    collection.upsert(["a", -1, 2**63 - 1], np.eye(3)[:, :2] + 1.0, [{"x": 1}, {"x": True}, {}])
    collection.upsert(["a"], [[5.0, 5.0]], [{"y": [1]}])
    assert collection.ids == ["a", -1, 2**63 - 1]
    assert collection.delete([-1, "absent"]) == 1
    again = Collection.open(tmp_path / "c", 2, "cosine")
    assert again.ids == ["a", 2**63 - 1]
    assert again.get(["a"])[0].payload == {"y": [1]}
    assert again.get(["a"])[0].vector.tolist() == [5, 5]
    assert (again.count(), again.count({"y": [[1]]}), again.count({"x": None})) == (2, 1, 0)


def test_true_is_not_one_in_a_filter(tmp_path: Path) -> None:
    collection = Collection.open(tmp_path / "c", 1)
    collection.upsert([1, 2], [[1.0], [2.0]], [{"x": 1}, {"x": True}])
    assert [hit.id for hit in collection.search([[1.0]], filter={"x": True})[0]] == [2]


@pytest.mark.parametrize(
    ("ids", "vectors", "payloads", "words"),
    [
        ([1], [[np.nan, 1]], None, "NaN"), ([1], [[np.inf, 1]], None, "NaN or an inf"), ([1], [[0, 0]], None, "zero"),
        ([1, 1], [[1, 1], [1, 2]], None, "repeat"), ([True], [[1, 1]], None, "str or an int"),
        ([1.5], [[1, 1]], None, "str or an int"), ("ab", [[1, 1], [1, 1]], None, "list of ids"),
        ([2**63], [[1, 1]], None, "int64"), ([1], [[1, 1, 1]], None, "shape"), ([1], [1, 1], None, "shape"),
        ([1], [[1e300, 1]], None, "float32"), ([1], [["a", "b"]], None, "numbers"), ([1], [[True, True]], None, "bool"),
        ([1, 2], [[1, 1]], None, "2 ids for 1"), ([1], [[1, 1]], [{}, {}], "2 payloads"),
        ([1], [[1, 1]], [[1]], "must be a dict"), ([1], [[1, 1]], [{"a": object()}], "JSON"),
        ([1], [[1, 1]], [{"a": float("nan")}], "JSON"), ([1], [[1, 1]], [{1: 1}], "JSON"),
    ],
)  # fmt: skip
def test_a_refused_upsert_changes_nothing(tmp_path: Path, ids: Any, vectors: Any, payloads: Any, words: str) -> None:
    collection = Collection.open(tmp_path / "c", 2)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CollectionError, match=words):
        collection.upsert(ids, vectors, payloads)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "query",
    [{"vectors": [[1.0, 1.0]], "k": 0}, {"vectors": [[1.0, 1.0]], "k": True}, {}, {"ids": [9]}, {"images": [1]},
     {"vectors": [[0.0, 0.0]]}, {"vectors": [[1.0, np.nan]]}, {"vectors": [[1.0, 1.0]], "filter": ["x"]}],
)  # fmt: skip
def test_wrong_searches_are_refused(tmp_path: Path, query: dict[str, Any]) -> None:
    with pytest.raises(CollectionError):
        Collection.open(tmp_path / "c", 2).search(**query)


def test_requests_that_are_too_large_or_would_delete_everything_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = filled(tmp_path / "c")
    monkeypatch.setattr(queries, "_MOST_HITS", 1000)
    for refused, words in (
        (lambda: collection.search(VECTORS[:6], k=200), "more than 1,000 hits"),
        (lambda: collection.search(VECTORS[:1], k=10**9), "from 1 to"),
        (lambda: collection.delete(filter={}), "an empty filter"),
        (lambda: collection.delete(), "either ids or filter"),
        (lambda: collection.upsert([""], VECTORS[:1]), "1 to 1024 characters"),
        (lambda: collection.upsert(["\ud800"], VECTORS[:1]), "valid Unicode"),
        (lambda: collection.upsert([1], VECTORS[:1], [{"x": "y" * 2**20}]), "bytes of JSON"),
        (lambda: collection.recommend([], [1]), "at least one positive"),
        (lambda: collection.search(images=["absent.png"]), "knows no model"),
    ):
        with pytest.raises(CollectionError, match=words):
            refused()
    assert len(collection.search(VECTORS[:5], k=200)[0]) == collection.count() == 200


def test_batch_is_one_commit_or_none_and_has_one_writer(tmp_path: Path) -> None:
    collection, other = Collection.open(tmp_path / "c", 1), Collection.open(tmp_path / "c", patience=0)
    with pytest.raises(KeyError), collection.batch():
        collection.upsert([1], [[1.0]])
        raise KeyError
    with collection.batch():
        collection.upsert([1], [[1.0]])
        collection.upsert([2], [[1.0]])
        with pytest.raises(CollectionError, match="another writer"):
            other.upsert([3], [[1.0]])
        assert collection.count() == 0
    assert other.ids == [1, 2]
    other.upsert([3], [[1.0]])
    assert Collection.open(tmp_path / "c").ids == [1, 2, 3]


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(CollectionError, match="not a collection"):
        Collection.open(tmp_path, 2)


class Doubler:
    digest = "d" * 64
    dimension = 2

    def embed(self, images: Any) -> Any:
        return np.asarray(images, dtype=np.float32) * 2


def test_images_are_embedded_by_the_collections_model_alone(tmp_path: Path) -> None:
    collection = Collection.open(tmp_path / "c", model=Doubler())
    assert (collection.dimension, collection.model_digest) == (2, "d" * 64)
    collection.upsert(["a"], [[2.0, 4.0]], model_digest="d" * 64)
    assert collection.search(images=[[1.0, 2.0]])[0][0].score == pytest.approx(1)
    for refused in (
        lambda: collection.upsert(["b"], [[1.0, 1.0]], model_digest="e" * 64),
        lambda: collection.search([[1.0, 1.0]], model_digest="e" * 64),
        lambda: Collection.open(tmp_path / "c", model_digest="e" * 64),
    ):
        with pytest.raises(ModelMismatch):
            refused()
    with pytest.raises(CollectionError, match="dimension 2 and metric cosine"):
        Collection.open(tmp_path / "c", 3)
