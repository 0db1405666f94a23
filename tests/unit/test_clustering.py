"""Mutual information of clusters and classes against its formulas, summed in loops."""

from __future__ import annotations

from math import comb, log

import faiss
import numpy as np
import pytest

from raydml.errors import DataError
from raydml.evaluation.clustering import _clusters, clustering

pytestmark = pytest.mark.timeout(30)


def entropy(sizes: list[int], total: int) -> float:
    return -sum(size / total * log(size / total) for size in sizes)


def by_formula(first: list[int], second: list[int]) -> tuple[float, float]:
    """Vinh, Epps and Bailey, 2010: I, and E[I] with hypergeometric probabilities of each overlap."""
    total = len(first)
    sizes_a = [first.count(name) for name in set(first)]
    sizes_b = [second.count(name) for name in set(second)]
    pairs = list(zip(first, second, strict=True))
    information = sum(
        pairs.count((a, b)) / total * log(total * pairs.count((a, b)) / (first.count(a) * second.count(b)))
        for a, b in set(pairs)
    )
    expected = sum(
        overlap / total * log(total * overlap / (a * b)) * comb(a, overlap) * comb(total - a, b - overlap)
        / comb(total, b)
        for a in sizes_a
        for b in sizes_b
        for overlap in range(max(1, a + b - total), min(a, b) + 1)
    )  # fmt: skip
    mean = (entropy(sizes_a, total) + entropy(sizes_b, total)) / 2
    return information / mean, (information - expected) / (mean - expected)


def test_nmi_and_ami_follow_their_formulas() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(60) % 5
    vectors = (random.standard_normal((5, 3))[labels] * 0.8 + random.standard_normal((60, 3))).astype(np.float32)
    found = clustering(vectors, labels, seed=1, unit=False)
    scale = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1).max())
    clusters = _clusters((vectors / scale).astype(np.float32), 5, 1)
    assert (found["nmi"], found["ami"]) == pytest.approx(by_formula(labels.tolist(), clusters.tolist()), abs=1e-9)
    assert 0.05 < found["ami"] < found["nmi"] < 0.95


def test_classes_that_lie_apart_are_found_again() -> None:
    labels = np.array([2**60, -1, 5]).repeat(20)
    centres = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]).repeat(20, axis=0)
    lengths = np.random.default_rng(1).uniform(1, 1e30, (60, 1))
    assert clustering(centres * lengths, labels, seed=0) == pytest.approx({"nmi": 1.0, "ami": 1.0})


def test_random_labels_have_ami_near_zero_and_nmi_far_from_it() -> None:
    random = np.random.default_rng(2)
    found = clustering(random.standard_normal((300, 4)), random.integers(0, 40, 300), seed=0)
    assert abs(found["ami"]) < 0.1 and found["nmi"] > 0.3


def test_the_seed_decides_and_threads_do_not() -> None:
    random = np.random.default_rng(3)
    vectors = random.standard_normal((2000, 16)).astype(np.float32)
    threads = faiss.omp_get_max_threads()
    first = _clusters(vectors, 20, 5)
    try:
        faiss.omp_set_num_threads(2)
        assert (first == _clusters(vectors, 20, 5)).all()
    finally:
        faiss.omp_set_num_threads(threads)
    assert (first != _clusters(vectors, 20, 6)).any()


def test_embeddings_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="rows 1"):
        clustering(np.array([[1.0], [np.nan]]), np.array([0, 1]), seed=0)
