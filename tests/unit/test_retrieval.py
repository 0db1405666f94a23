"""Retrieval metrics against a loop that a child could check."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from raydml.errors import DataError
from raydml.evaluation import baseline, positives, ranks, retrieval, scores, summarise, tiles

pytestmark = pytest.mark.timeout(30)
Array = np.ndarray[Any, Any]


def score(query: Array, row: Array, metric: str) -> float:
    if metric == "cosine":
        return float(query @ row / np.sqrt(query @ query) / np.sqrt(row @ row))
    difference = np.abs(query - row)
    return -float(difference.sum() if metric == "manhattan" else (difference**2).sum())


def slow(queries: Array, query_labels: Array, gallery: Array, gallery_labels: Array, own: Array, metric: str) -> Array:
    rows = []
    for i, query in enumerate(queries):
        others = [j for j in range(len(gallery)) if j != own[i]]
        order = sorted(others, key=lambda j: (-score(query, gallery[j], metric), j))
        hits = [bool(gallery_labels[j] == query_labels[i]) for j in order]
        count = sum(hits)
        if count == 0:
            rows.append([np.nan] * 4)
            continue
        precisions = [sum(hits[: r + 1]) / (r + 1) if hits[r] else 0.0 for r in range(count)]
        rows.append([hits[0], sum(hits[:count]) / count, sum(precisions) / count, any(hits[:10])])
    return np.array(rows, dtype=float)


def table(values: dict[str, Array]) -> Array:
    return np.stack([values[n] for n in ("precision_at_1", "r_precision", "map_at_r", "recall_at_10")], axis=1)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "manhattan"])
def test_metrics_are_those_of_a_loop_with_ties_and_lonely_queries(metric: Any) -> None:
    random = np.random.default_rng(0)
    labels = np.array([0] * 30 + [1] * 7 + [2] * 2 + [3] + [4] * 20)
    vectors = random.choice([-2.0, -1.0, 1.0, 2.0], (60, 1)) if metric == "cosine" else random.integers(0, 3, (60, 3))
    vectors = vectors.astype(np.float32)
    own = np.arange(60)
    values = retrieval(vectors, labels, vectors, labels, own=own, metric=metric)
    np.testing.assert_allclose(table(values), slow(vectors, labels, vectors, labels, own, metric), atol=1e-12)
    assert summarise(values)["queries_without_positive"] == 1


def test_queries_apart_from_the_gallery_over_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_TILE", 320)
    monkeypatch.setattr(scores, "_COORDINATES", 24)
    random = np.random.default_rng(1)
    queries, gallery = random.standard_normal((20, 8)), random.standard_normal((75, 8))
    gallery[40:50] = gallery[0:10]
    query_labels, gallery_labels = random.integers(0, 4, 20), random.integers(0, 4, 75)
    none = np.full(20, -1)
    expected = slow(queries, query_labels, gallery, gallery_labels, none, "cosine")
    np.testing.assert_allclose(
        table(retrieval(queries, query_labels, gallery, gallery_labels, own=None)), expected, atol=1e-12
    )


def test_equal_vectors_rank_by_row_wherever_they_stand() -> None:
    gallery = np.random.default_rng(2).standard_normal((9000, 64)).astype(np.float32)
    same = [3, 255, 4095, 4096, 8191, 8999]
    gallery[same] = gallery[3]
    labels = np.zeros(9000, dtype=np.int64)
    for place, row in enumerate(same):
        labels[:] = 0
        labels[row] = 1
        values = retrieval(gallery[[3]], np.array([1]), gallery, labels, own=None, recall_at=(place + 1, max(place, 1)))
        assert values[f"recall_at_{place + 1}"][0] == 1
        assert values[f"recall_at_{max(place, 1)}"][0] == (place == 0)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "manhattan"])
def test_workers_that_split_the_queries_anywhere_get_the_same_bits(metric: Any) -> None:
    random = np.random.default_rng(3)
    vectors, labels = random.standard_normal((718, 24)).astype(np.float32), random.integers(0, 9, 718)
    own = np.arange(718)
    whole = retrieval(vectors, labels, vectors, labels, own=own, metric=metric)
    for cut in (1, 256, 500):
        parts = [
            retrieval(vectors[s], labels[s], vectors, labels, own=own[s], metric=metric)
            for s in (slice(0, cut), slice(cut, None))
        ]
        for name in whole:
            assert np.concatenate([part[name] for part in parts]).tobytes() == whole[name].tobytes()


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "manhattan"])
def test_little_memory_changes_nothing(metric: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(4)
    labels = random.permutation(np.concatenate([np.zeros(100, dtype=int), np.arange(200) // 4]))
    vectors, own = random.standard_normal((300, 8)).astype(np.float32), np.arange(300)
    whole = retrieval(vectors, labels, vectors, labels, own=own, metric=metric)
    np.testing.assert_allclose(table(whole), slow(vectors, labels, vectors, labels, own, metric), atol=1e-12)
    for module, name, value in [
        (ranks, "MOST_PAIRS", 4000), (ranks, "_WAITING", 10), (ranks, "BLOCK", 16), (tiles, "_TILE", 600),
        (positives, "_TOGETHER", 5), (positives, "_ROWS_AT_ONCE", 7),
    ]:  # fmt: skip
        monkeypatch.setattr(module, name, value)
    parts = retrieval(vectors, labels, vectors, labels, own=own, metric=metric)
    for name in whole:
        assert whole[name].tobytes() == parts[name].tobytes()


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "manhattan"])
def test_a_query_need_not_have_the_numbers_of_its_gallery_row(metric: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "BLOCK", 16)
    random = np.random.default_rng(11)
    gallery, labels, own = random.standard_normal((90, 4)), random.integers(0, 20, 90), np.arange(90)
    queries = gallery + random.standard_normal((90, 4))
    own[7] = own[np.flatnonzero(labels == labels[7])[0]]  # two queries of one gallery row
    values = retrieval(queries, labels, gallery, labels, own=own, metric=metric)
    np.testing.assert_allclose(table(values), slow(queries, labels, gallery, labels, own, metric), atol=1e-12)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "manhattan"])
def test_differences_far_below_float32_decide(metric: Any) -> None:
    random = np.random.default_rng(8)
    angles = 0.7 + 1e-10 * random.permutation(120)  # float32 tells numbers near 0.7 apart from 6e-8 on
    gallery = np.stack([np.cos(angles), np.sin(angles)], axis=1) if metric == "cosine" else np.tile(angles, (2, 1)).T
    queries, none = np.array([[1.0, 0.0], [0.8, 0.1], [3.0, 3.5]]), np.full(3, -1)
    query_labels, gallery_labels = np.arange(3), random.integers(0, 3, 120)
    values = retrieval(queries, query_labels, gallery, gallery_labels, own=None, metric=metric)
    expected = slow(queries, query_labels, gallery, gallery_labels, none, metric)
    np.testing.assert_allclose(table(values), expected, atol=1e-12)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "manhattan"])
@pytest.mark.parametrize("value", [0.0, 3.0, 1e-200, 1e100])
def test_a_collapsed_model_ranks_by_row(metric: Any, value: float) -> None:
    labels = np.arange(1200) % 300
    vectors = np.full((1200, 4), value)
    values = retrieval(vectors, labels, vectors, labels, own=np.arange(1200), metric=metric)
    first = np.where(labels == np.arange(1200), labels + 300, labels) + 1  # a query itself does not count
    first = np.where(labels == np.arange(1200), first - 1, first)
    assert values["recall_at_100"].tolist() == (first <= 100).astype(float).tolist()


def test_one_large_class_among_many_small_ones() -> None:
    random = np.random.default_rng(9)
    labels = np.concatenate([np.zeros(200, dtype=int), np.arange(1, 101).repeat(2)])
    vectors = random.standard_normal((400, 5)) + (labels == 0)[:, None]
    values = retrieval(vectors, labels, vectors, labels, own=np.arange(400), metric="euclidean")
    expected = slow(vectors, labels, vectors, labels, np.arange(400), "euclidean")
    np.testing.assert_allclose(table(values), expected, atol=1e-12)


def test_labels_above_two_to_the_24_stay_apart() -> None:
    labels = np.array([2**24, 2**24 + 1, 2**60, 2**60 + 1])
    values = retrieval(np.ones((4, 2)), labels, np.ones((4, 2)), labels, own=np.arange(4))
    assert all(np.isnan(value).all() for value in values.values())
    with pytest.raises(DataError, match="none of 4 queries"):
        summarise(values)


def test_values_agree_with_pytorch_metric_learning() -> None:
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN
    from pytorch_metric_learning.distances import CosineSimilarity  # isort: skip

    random = np.random.default_rng(5)
    labels = np.repeat(np.arange(12), 10)
    vectors = (random.standard_normal((12, 16))[labels] + random.standard_normal((120, 16))).astype(np.float32)
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    peer = AccuracyCalculator(include=names, k="max_bin_count", knn_func=CustomKNN(CosineSimilarity()))
    expected = peer.get_accuracy(torch.from_numpy(vectors), torch.from_numpy(labels))
    found = summarise(retrieval(vectors, labels, vectors, labels, own=np.arange(120)))
    for ours, theirs in zip(("precision_at_1", "r_precision", "map_at_r"), names, strict=True):
        assert found[ours] == pytest.approx(expected[theirs], abs=1e-6)


def test_memory_stays_far_below_all_pairs() -> None:
    vectors, labels = np.random.default_rng(6).standard_normal((12000, 8)).astype(np.float32), np.arange(12000) // 4
    tracemalloc.start()
    retrieval(vectors[:300], labels[:300], vectors, labels, own=np.arange(300))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 2**20


def test_memory_stays_bounded_with_one_large_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "MOST_PAIRS", 2**16)
    monkeypatch.setattr(tiles, "_TILE", 2**14)
    random = np.random.default_rng(10)
    vectors, labels = random.standard_normal((5000, 4)).astype(np.float32), np.arange(5000) // 4
    labels[random.permutation(5000)[:3000]] = -1
    queries = np.flatnonzero(labels == -1)[:100]  # 300,000 pairs of a query and a positive
    tracemalloc.start()
    retrieval(vectors[queries], labels[queries], vectors, labels, own=queries)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**16 * 250


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"queries": np.array([[0.0, np.nan]])}, "rows 0"),
        ({"queries": np.array([[0.0, np.inf]])}, "rows 0"),
        ({"queries": np.ones((1, 3))}, "dimension 3, the gallery 2"),
        ({"gallery": np.ones((0, 2)), "gallery_labels": np.ones(0, dtype=int)}, "empty"),
        ({"query_labels": np.array([1.0])}, "integers"),
        ({"own": np.array([2])}, "row of the gallery"),
        ({"own": np.array([1])}, "another label"),
        ({"recall_at": (0,)}, "at least 1"),
    ],
)
def test_wrong_input_is_refused_with_the_numbers(change: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {
        "queries": np.ones((1, 2)), "query_labels": np.array([1]), "gallery": np.ones((2, 2)),
        "gallery_labels": np.array([1, 2]), "own": None,
    }  # fmt: skip
    with pytest.raises(DataError, match=words):
        retrieval(**{**given, **change})


def test_no_queries_give_no_values() -> None:
    values = retrieval(np.ones((0, 2)), np.ones(0, dtype=int), np.ones((1, 2)), np.ones(1, dtype=int), own=None)
    assert all(value.shape == (0,) for value in values.values())


def test_baseline_is_centred_and_of_unit_length_and_the_mean_has_no_direction() -> None:
    raw = np.array([[1.0, 5.0], [3.0, 5.0], [2.0, 5.0]], dtype=np.float32)
    np.testing.assert_allclose(baseline(raw), [[-1, 0], [1, 0], [0, 0]], atol=1e-7)
    assert baseline(raw).dtype == np.float32
