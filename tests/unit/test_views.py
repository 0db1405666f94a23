"""What a run writes for a page, against loops over all pairs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raydml.data import open_dataset
from raydml.evaluation import retrieval
from raydml.evaluation.scores import Metric
from raydml.evaluation.views import FINE, PairScores, evenly, pair_scores, projection
from raydml.training import views
from raydml.training.views import write_views
from tests.distributed.harness import small_spec, write_images

METRICS: tuple[Metric, ...] = ("cosine", "euclidean", "manhattan")


def score(one: np.ndarray, other: np.ndarray, metric: Metric) -> float:
    if metric == "cosine":
        return float(one @ other / np.sqrt((one @ one) * (other @ other)))
    apart = np.abs(one - other)
    return -float(np.sqrt((apart**2).sum()) if metric == "euclidean" else apart.sum())


@pytest.mark.parametrize("metric", METRICS)
def test_scores_of_pairs_are_counted_once_each_and_in_their_bin(
    metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raydml.evaluation.views._SCORES", 90)  # blocks of a few queries
    generator = np.random.default_rng(1)
    gallery = generator.standard_normal((20, 4)).astype(np.float32)
    labels, own = np.arange(20) % 4, np.arange(20)
    found = pair_scores(gallery, labels, gallery, labels, own, metric)
    kinds: dict[bool, list[float]] = {True: [], False: []}
    for one in range(20):
        for other in range(20):
            if one != other:
                kinds[bool(labels[one] == labels[other])].append(score(gallery[one], gallery[other], metric))
    for same, counted in ((True, found.positive), (False, found.negative)):
        assert counted.sum() == len(kinds[same])
        middles = found.low + (np.flatnonzero(counted) + 0.5) * (found.high - found.low) / FINE
        means = (middles * counted[counted > 0]).sum() / counted.sum()
        assert means == pytest.approx(np.mean(kinds[same]), abs=(found.high - found.low) / FINE)
    edges, positive, negative = found.drawn()
    assert (positive.sum(), negative.sum()) == (len(kinds[True]), len(kinds[False])), "no pair is lost in drawing"
    assert edges[0] <= min(map(min, kinds.values())) and edges[-1] >= max(map(max, kinds.values()))


def test_true_accepts_at_a_false_accept_rate_are_those_of_the_sorted_scores() -> None:
    generator = np.random.default_rng(2)
    scores = {True: generator.beta(5, 2, 400), False: generator.beta(2, 4, 3000)}
    counts = {same: np.histogram(values, FINE, (0, 1))[0] for same, values in scores.items()}
    found = PairScores(0.0, 1.0, counts[True], counts[False])
    at = found.tar_at_far(0.01)
    assert at is not None
    share, threshold = at
    assert (scores[False] >= threshold).sum() <= 30 < (scores[False] >= threshold - 1 / FINE).sum()
    assert share == pytest.approx((scores[True] >= threshold).mean())
    assert found.tar_at_far(0.001) is None, "three pairs of 3000 say nothing"


def test_the_map_has_the_two_directions_of_most_variance() -> None:
    generator = np.random.default_rng(3)
    rotation = np.linalg.qr(generator.standard_normal((6, 6)))[0]
    rows = generator.standard_normal((500, 6)) * [9.0, 4.0, 1.0, 0.5, 0.1, 0.1] @ rotation
    flat, shares = projection(rows)
    assert flat.var(axis=0) == pytest.approx(np.sort(np.linalg.eigvalsh(np.cov(rows.T, bias=True)))[::-1][:2])
    assert abs(np.corrcoef(flat.T)[0, 1]) < 1e-9
    assert shares == pytest.approx(flat.var(axis=0) / rows.var(axis=0).sum())
    assert projection(rows[:, :1])[0].shape == (500, 2), "a single dimension lies on a line"


def test_rows_are_chosen_evenly_by_their_number_alone() -> None:
    assert evenly(10, 4).tolist() == [0, 3, 6, 9]
    assert evenly(3, 4).tolist() == [0, 1, 2]


def documents(folder: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_what_a_run_writes_names_the_right_items_and_has_their_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "COLUMNS", 4)  # sheets of 16
    dataset = open_dataset(small_spec(write_images(tmp_path, classes=60, each=4)).data, tmp_path)
    dataset.items = replace(dataset.items, is_query=np.arange(240) % 2 == 0)
    spec = small_spec(tmp_path / "images")
    items = dataset.indices("test")
    names, labels = np.array(dataset.items.ids)[items], dataset.items.labels[items]
    embeddings = np.random.default_rng(4).standard_normal((len(items), 6)).astype(np.float32)
    rows = np.flatnonzero(dataset.items.is_query[items])
    values = retrieval(embeddings[rows], labels[rows], embeddings, labels, own=rows)
    write_views(tmp_path / "views", embeddings, values, dataset, spec)
    found = documents(tmp_path / "views")
    ids = np.array(found["items"]["ids"])

    asked = [ids[item] for item in found["queries"]["items"]]
    assert sorted(asked) == sorted(names[rows]), "few queries: all of them are kept"
    assert found["queries"]["values"]["map_at_r"] == sorted(found["queries"]["values"]["map_at_r"]), "the worst first"
    place = {name: row for row, name in enumerate(names)}
    for query, neighbours, value in zip(
        asked, found["queries"]["neighbours"], found["queries"]["values"]["precision_at_1"], strict=True
    ):
        others = [row for row in range(len(names)) if row != place[query]]
        near = sorted(others, key=lambda row: -score(embeddings[place[query]], embeddings[row], "cosine"))
        assert [ids[item] for item in neighbours] == [names[row] for row in near[: views.NEIGHBOURS]]
        assert value == float(labels[near[0]] == labels[place[query]])
    assert sorted(ids[item] for item in found["map"]["items"]) == sorted(names)
    assert found["scores"]["queries"] == len(rows)

    side = found["items"]["side"]
    for number, name in enumerate(ids):
        sheet = Image.open(tmp_path / "views" / f"pictures-{number // 16}.webp")
        left, top = number % 16 % 4 * side, number % 16 // 4 * side
        picture = np.asarray(sheet.crop((left, top, left + side, top + side)), float).mean(axis=2)
        wanted = np.squeeze(dataset.read(int(items[place[name]]))).astype(float)
        wanted = wanted.mean(axis=2) if wanted.ndim == 3 else wanted
        assert np.abs(picture - wanted).mean() < 25, name
