"""Approximate indexes: built only where they reach their recall faster, never short of hits, and damage is found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from raydml.errors import CollectionError
from raydml.search import Collection, approximate, compaction, index_choice
from raydml.search.nearest import Searched, nearest
from raydml.search.recall import num_common

pytestmark = pytest.mark.timeout(300)
COUNT, DIMENSION = 6000, 16
RANDOM = np.random.default_rng(4)
CENTRES = RANDOM.standard_normal((60, DIMENSION))
VECTORS = (CENTRES[RANDOM.integers(0, 60, COUNT)] + 0.5 * RANDOM.standard_normal((COUNT, DIMENSION))).astype(np.float32)
QUERIES = (CENTRES[RANDOM.integers(0, 60, 200)] + 0.5 * RANDOM.standard_normal((200, DIMENSION))).astype(np.float32)


def is_indexed(collection: Collection) -> bool:
    return any(part.get("setting") for part in collection.stats()["parts"])


@pytest.mark.parametrize(("kind", "seconds"), [("IVF128,SQfp16", 0.1), ("IVF128,PQ8x4fs", 0.5)])
def test_recall_of_unseen_queries_is_what_was_asked_for(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, kind: str, seconds: float
) -> None:
    for metric in ("cosine", "l2", "inner_product"):
        searched = Searched.of(VECTORS, metric)  # type: ignore[arg-type]
        folder = tmp_path_factory.mktemp("built")
        monkeypatch.setattr(index_choice, "MIN_ROWS", 1000)
        taken = iter([1.0] + [seconds] * 13 + [0.1] * 1000)  # a scan; 2, 3, 4, 6 to 128 lists of vectors; codes
        monkeypatch.setattr(index_choice, "_timed", lambda work, taken=taken: (work(), next(taken)))
        facts = index_choice.build(folder, "index.faiss", searched, 0.95)
        assert facts["kind"] == (f"{kind}r" if "PQ" in kind and metric == "inner_product" else kind)
        assert facts["setting"]["low"] >= 0.95
        probed = [point["nprobe"] for point in facts["curve"] if point["kind"] == facts["kind"]]
        assert probed == sorted(probed)
        index = approximate.Approximate.read(folder / "index.faiss", facts)
        for usable in (None, np.arange(COUNT) % 3 > 0):
            _, truth = nearest(QUERIES, searched, 10, usable)
            values, found = index.nearest(QUERIES, searched, 10, usable)
            assert num_common(found, truth) / truth.size > 0.93
            assert usable is None or usable[found].all()
            same = found == truth
            assert np.array_equal(values[same], nearest(QUERIES, searched, 10, usable)[0][same])


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_vectors_beyond_half_precision_are_kept_whole_in_their_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    searched = Searched.of(np.float32(scale) * VECTORS, "l2")
    monkeypatch.setattr(index_choice, "MIN_ROWS", 1000)
    taken = iter([1.0] + [0.1] * 13 + [1.0] * 1000)
    monkeypatch.setattr(index_choice, "_timed", lambda work: (work(), next(taken)))
    facts = index_choice.build(tmp_path, "index.faiss", searched, 0.95)
    assert facts["kind"] == "IVF128,Flat"
    queries = np.float32(scale) * QUERIES
    index = approximate.Approximate.read(tmp_path / "index.faiss", facts)
    found, truth = (search(queries, searched, 10, None)[1] for search in (index.nearest, nearest))
    assert num_common(found, truth) / truth.size > 0.93


def test_no_index_is_kept_that_is_slower_than_a_scan_or_misses_its_recall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = Searched.of(VECTORS, "l2")
    assert index_choice.build(tmp_path, "index.faiss", searched, 0.9) == {}  # too few rows
    monkeypatch.setattr(index_choice, "MIN_ROWS", 1000)
    seconds = iter([0.1] + [1.0] * 1000)
    monkeypatch.setattr(index_choice, "_timed", lambda work: (work(), next(seconds)))
    slow = index_choice.build(tmp_path, "index.faiss", searched, 0.9)
    assert (slow["setting"], len(slow["curve"])) == (None, 4)
    seconds = iter([1.0] + [0.1] * 1000)
    assert index_choice.build(tmp_path, "index.faiss", searched, 1.0)["setting"] is None
    assert list(tmp_path.iterdir()) == []


def test_as_many_hits_as_there_are_also_where_the_lists_probed_hold_too_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = Searched.of(VECTORS, "l2")
    monkeypatch.setattr(index_choice, "MIN_ROWS", 1000)
    seconds = iter([1.0] + [0.1] * 1000)
    monkeypatch.setattr(index_choice, "_timed", lambda work: (work(), next(seconds)))
    facts = index_choice.build(tmp_path, "index.faiss", searched, 0.9)
    index = approximate.Approximate.read(tmp_path / "index.faiss", facts)
    few = np.zeros(COUNT, dtype=bool)
    few[:30] = True
    assert np.array_equal(index.nearest(QUERIES, searched, 10, few)[1], nearest(QUERIES, searched, 10, few)[1])
    assert (index.nearest(QUERIES, searched, 60, few)[1] >= 0).sum() == 30 * len(QUERIES)


def build_fast(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(index_choice, "MIN_ROWS", 1000)
        seconds = iter([1.0] + [0.1] * 1000)
        patch.setattr(index_choice, "_timed", lambda work: (work(), next(seconds)))
        assert compaction.compact(collection.path) is not None
        assert compaction.compact(collection.path) is None


def test_a_large_segment_is_measured_once_and_then_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "LARGE", COUNT)
    collection = Collection.open(tmp_path / "c", DIMENSION, "cosine", recall=0.95)
    with collection.batch():
        collection.upsert(range(COUNT), VECTORS)
    collection.seal()
    build_fast(collection, monkeypatch)
    assert is_indexed(collection)


def test_a_collection_with_an_index_loses_and_gains_points_and_can_be_asked_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = Collection.open(tmp_path / "c", DIMENSION, "cosine", recall=0.95)
    collection.upsert(range(COUNT), VECTORS, [{"even": row % 2 == 0} for row in range(COUNT)])
    collection.seal()
    build_fast(collection, monkeypatch)
    assert is_indexed(collection)
    collection._live.every, collection._live.share = 50, 1.0
    gone = [hits[0].id for hits in collection.search(QUERIES[:50], k=1, exact=True)]
    collection.delete(list(dict.fromkeys(gone)))
    collection.upsert(["new"], QUERIES[:1])
    assert collection.search(QUERIES[:1], k=1)[0][0].id == "new"
    exact = collection.search(QUERIES, k=10, exact=True)
    found = collection.search(QUERIES, k=10)
    shared = sum(len({hit.id for hit in a} & {hit.id for hit in b}) for a, b in zip(exact, found, strict=True))
    assert shared > 0.93 * 2000
    assert not {hit.id for hits in found for hit in hits} & set(gone)
    even = {"even": True}
    assert collection.search(QUERIES, filter=even) == collection.search(QUERIES, filter=even, exact=True)
    for query in QUERIES:
        collection.search([query])
    recall = collection.stats()["recall"]
    assert (recall["queries"] > 200, recall["sampled"] >= 4) == (True, True)
    assert recall["low"] < recall["recall"] <= 1
    collection.check()
    path = next((tmp_path / "c" / "segments").rglob("index.faiss"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    damaged = Collection.open(tmp_path / "c")
    with pytest.raises(CollectionError, match=r"index.faiss.*Collection.rebuild"):
        damaged.search(QUERIES[:1])
    damaged.rebuild()
    assert damaged.search(QUERIES, exact=True) == exact
    damaged.check()


def test_an_index_is_searched_where_faiss_was_patched_for_tensors() -> None:
    script = """
import faiss, numpy as np, pytorch_metric_learning.utils.inference, sys
assert "faiss.contrib.torch_utils" in sys.modules
from raydml.search.approximate import Approximate, Setting
from raydml.search.nearest import Searched, nearest
vectors = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
index = faiss.index_factory(8, "IVF4,Flat", faiss.METRIC_L2)
index.train(vectors)
index.add(vectors)
searched = Searched.of(vectors, "l2")
every_list = Approximate(index, Setting(4, 1, 1.0, 1.0, 1.0, 1.0), 1.0)
for found, true in zip(every_list.nearest(vectors[:9], searched, 5, None), nearest(vectors[:9], searched, 5)):
    assert np.array_equal(found, true)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=100)
