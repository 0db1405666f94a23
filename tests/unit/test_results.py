"""What each query got, kept in a file; and the neighbours of the worst, against a sort that a child could check."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raydml.errors import DataError
from raydml.evaluation import retrieval
from raydml.evaluation.nearest import nearest
from raydml.evaluation.results import Asked, Neighbour, Results, path_of, read_results, worst_rows, write_results
from raydml.evaluation.scores import Metric

pytestmark = pytest.mark.timeout(30)
ASKED = Asked("retrieval", "cosine", "test", "q" * 64, "g" * 64, 12, trained_on="f" * 64)


def score(query: np.ndarray, row: np.ndarray, metric: Metric) -> float:
    if metric == "cosine":
        return float(query @ row / np.linalg.norm(query) / np.linalg.norm(row))
    return -float(np.abs(query - row).sum() if metric == "manhattan" else np.linalg.norm(query - row))


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "manhattan"])
def test_neighbours_are_those_of_a_sort(metric: Metric) -> None:
    random = np.random.default_rng(0)
    gallery = random.normal(size=(50, 4)).astype(np.float32)
    gallery[[9, 30, 31]] = gallery[8]  # ties go to the lower row
    own = np.array([3, -1, 8, 49])
    queries = gallery[own]
    queries[1] = random.normal(size=4)
    rows, scores = nearest(queries, gallery, own, depth=6, metric=metric)
    for place in range(4):
        known = [(-score(queries[place], gallery[row], metric), row) for row in range(50) if row != own[place]]
        wanted = sorted((round(far, 6), row) for far, row in known)[:6]
        assert rows[place].tolist() == [row for _, row in wanted]
        assert scores[place] == pytest.approx([-far for far, _ in wanted], abs=1e-6)


def test_the_first_neighbour_is_right_where_precision_at_1_says_so() -> None:
    random = np.random.default_rng(1)
    vectors, labels = random.integers(-2, 3, (80, 3)).astype(np.float32), np.arange(80) % 7
    vectors[5] = 0
    own = np.arange(80)
    values = retrieval(vectors, labels, vectors, labels, own=own)
    rows, _ = nearest(vectors, vectors, own, depth=1, metric="cosine")  # small integers: many ties
    assert (labels[rows[:, 0]] == labels).tolist() == (values["precision_at_1"] == 1).tolist()


def test_a_gallery_smaller_than_the_depth_gives_what_it_has() -> None:
    gallery = np.eye(3)
    rows, scores = nearest(gallery[:1], gallery, np.array([0]), depth=10, metric="cosine")
    assert rows.tolist() == [[1, 2, -1]] and scores[0, :2].tolist() == [0, 0] and np.isnan(scores[0, 2])


def test_the_worst_are_the_lowest_and_none_without_a_positive() -> None:
    values = {"map_at_r": np.array([0.5, np.nan, 0.0, 1.0, 0.0])}
    assert worst_rows(values, 3).tolist() == [2, 4, 0] and worst_rows(values, 9).tolist() == [2, 4, 0, 3]


def made() -> Results:
    values = {"precision_at_1": np.array([1.0, 0.0, np.nan]), "map_at_r": np.array([0.75, 1 / 3, np.nan])}
    worst = {1: (Neighbour("x/1.png", "b", 0.1 + 0.2), Neighbour("x/2.png", "a", -1.5))}
    return Results(ASKED, ("a/1", "a/2", "é/3"), ("a", "a", "é"), values, worst)


def test_results_come_back_from_their_file(tmp_path: Path) -> None:
    write_results(tmp_path, made(), model="m" * 64)
    assert [path.name for path in (tmp_path / "evaluation").iterdir()] == ["cosine.parquet"]
    found = read_results(tmp_path, "cosine")
    assert found.asked == replace(ASKED, model="m" * 64)
    assert (found.ids, found.labels, found.worst) == (made().ids, made().labels, made().worst)
    assert found.classes.tolist() == [0, 0, 1]
    for name, value in made().values.items():
        assert found.values[name].tobytes() == value.tobytes()


def test_the_same_results_make_the_same_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_results(tmp_path / name, made(), model=None)
    one, two = (path_of(tmp_path / name, "cosine").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_damaged_file_and_one_of_another_kind_are_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = path_of(tmp_path, "cosine")
    write_results(tmp_path, made(), model=None)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        read_results(tmp_path, "cosine")
    pyarrow.parquet.write_table(pyarrow.table({"id": ["a"]}), path)
    with pytest.raises(DataError, match="version 1"):
        read_results(tmp_path, "cosine")
    later = pyarrow.table({"id": ["a"]}).replace_schema_metadata({"raydml.evaluation": json.dumps({"version": 2})})
    pyarrow.parquet.write_table(later, path)
    with pytest.raises(DataError, match="version 1"):
        read_results(tmp_path, "cosine")
