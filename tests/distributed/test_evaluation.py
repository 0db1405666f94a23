"""Metrics of a split over real processes: the same bits as one process, for any number of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydml.data import Dataset, open_dataset
from raydml.evaluation import retrieval
from raydml.parallel import Group
from raydml.training.evaluate import measure_split, measure_test, values_of_split
from tests.distributed.harness import run_processes, small_spec, write_images

pytestmark = pytest.mark.timeout(100)
COUNTS = {"queries", "queries_without_positive", "nmi", "ami"}
METRICS = ("cosine", "euclidean", "manhattan")


def _measured(group: Group, given: tuple[str, int]) -> dict[str, Any]:
    path, dimension = given
    dataset = open_dataset(small_spec(Path(path)).data, Path(path).parent)
    items = dataset.indices("train")
    embeddings = np.random.default_rng(3).standard_normal((len(items), dimension)).astype(np.float32)
    return {metric: _of(embeddings, dataset, items, metric, group) for metric in METRICS}


def _of(embeddings: np.ndarray, dataset: Dataset, items: np.ndarray, metric: str, group: Group) -> Any:
    values = values_of_split(embeddings, dataset, items, metric, group)
    return {name: value.tobytes() for name, value in values.items()}, measure_split(
        embeddings, dataset, items, metric, group
    )


def test_any_number_of_workers_measures_the_same_bits(tmp_path: Path) -> None:
    path = write_images(tmp_path, classes=200, each=4)
    alone = _measured(Group(0, 1, 8), (str(path), 5))
    assert alone["cosine"][1]["queries"] == 480
    assert len({str(alone[metric]) for metric in METRICS}) == 3
    for size in (1, 2, 3):
        assert run_processes(size, _measured, (str(path), 5), tmp_path) == [alone] * size


def _apart(group: Group, path: str) -> Any:
    dataset = open_dataset(small_spec(Path(path)).data, Path(path).parent)
    queries = np.arange(len(dataset.items.labels)) % 3 == 0
    dataset.items = replace(dataset.items, is_query=queries, is_gallery=~queries)
    items = dataset.indices("train")
    embeddings = np.random.default_rng(3).standard_normal((len(items), 5)).astype(np.float32)
    found = values_of_split(embeddings, dataset, items, "cosine", group)
    rows, labels = queries[items], dataset.items.labels[items]
    wanted = retrieval(embeddings[rows], labels[rows], embeddings[~rows], labels[~rows], own=None)
    return all(found[name].tobytes() == wanted[name].tobytes() for name in wanted), len(found["map_at_r"])


def test_queries_apart_from_the_gallery_are_measured_against_it_alone(tmp_path: Path) -> None:
    path = write_images(tmp_path, classes=50, each=4)
    assert run_processes(2, _apart, str(path), tmp_path) == [(True, 40)] * 2


def test_more_workers_than_queries_measure_too(tmp_path: Path) -> None:
    path = write_images(tmp_path, classes=5, each=2)
    alone = _measured(Group(0, 1, 8), (str(path), 2))
    assert alone["cosine"][1]["queries"] == 6
    assert run_processes(8, _measured, (str(path), 2), tmp_path) == [alone] * 8


def _reported(group: Group, path: str) -> Any:
    asked = {"bootstrap": 50, "bootstrap_over": "classes", "confidence": 0.8, "clustering": True}
    spec = small_spec(Path(path), evaluate=asked)
    dataset = open_dataset(spec.data, Path(path).parent)
    embeddings = np.random.default_rng(4).standard_normal((len(dataset.indices("test")), 6)).astype(np.float32)
    metrics, bounds, results = measure_test(embeddings, dataset, spec, group)
    if results is None:
        return metrics, bounds, None
    values = {name: value.tobytes() for name, value in results.values.items()}
    return metrics, bounds, (results.asked, results.ids, results.labels, values, results.worst)


def test_the_first_of_any_workers_reports_what_one_process_does(tmp_path: Path) -> None:
    path = write_images(tmp_path, classes=60, each=4)
    alone = _reported(Group(0, 1, 8), str(path))
    metrics, bounds, _ = alone
    assert {"nmi", "ami"} < set(metrics) and set(bounds) == set(metrics) - COUNTS
    assert all(low <= metrics[name] <= high and low < high for name, (low, high) in bounds.items() if "100" not in name)
    first, second = run_processes(2, _reported, str(path), tmp_path)
    assert first == alone and second[1:] == ({}, None)
