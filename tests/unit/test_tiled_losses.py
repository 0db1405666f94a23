"""Losses in tiles against the plain path: values and gradients in float64, and memory that stays flat."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from raydml.losses import Objective, evaluate_objective
from raydml.losses import objective as objectives
from raydml.losses.tiled import CLASSES, FORMULAS, class_scores, layout, n_pairs
from raydml.losses.tiled.log_sum_exp import NEAR, BoundedLogSumExp, linear_log_sum_exp
from raydml.losses.tiled.statistics import Pairs
from raydml.parallel import Group
from tests.alive import Alive
from tests.unit.test_losses import LOSS

SIMILARITIES: list[dict[str, Any]] = [
    {"kind": "cosine"},
    {"kind": "dot_product", "normalize_embeddings": False},
]
DISTANCES: list[dict[str, Any]] = [
    {"kind": "euclidean"},
    {"kind": "euclidean", "power": 2},
    {"kind": "euclidean", "power": 3, "normalize_embeddings": False},
    {"kind": "manhattan"},
    {"kind": "lp", "p": 3, "power": 2},
]
EASY_HARD = [("easy", "semihard"), ("hard", "easy"), ("semihard", "hard"), ("hard", "semihard")]
MINERS: list[dict[str, Any]] = [
    *({"kind": kind} for kind in ("all", "hard", "semihard", "easy", "batch_hard")),
    {"kind": "triplet_margin", "margin": 0.1, "type_of_triplets": "semihard"},
    *({"kind": "batch_easy_hard", "pos_strategy": p, "neg_strategy": n} for p, n in EASY_HARD),
]


def documents() -> list[dict[str, Any]]:
    """Every tiled loss with every distance it takes, every miner and every reducer that has a tiled form."""
    pairs = ("generalized_lifted_structure", "lifted_structure", "multi_similarity", "nt_xent", "sup_con")
    found: list[dict[str, Any]] = [{"kind": kind} for kind in FORMULAS]
    found += [{"kind": k, "distance": d} for k, d in itertools.product(pairs, SIMILARITIES + DISTANCES)]
    found += [{"kind": "contrastive", "distance": distance, "neg_margin": 1.3} for distance in DISTANCES]
    found += [{"kind": "contrastive", "distance": d, "pos_margin": 1, "neg_margin": 0} for d in SIMILARITIES]
    found += [{"kind": "triplet", "distance": d, "margin": 0.3} for d in SIMILARITIES + DISTANCES]
    found += [{"kind": "triplet", "margin": 0.3, "miner": miner} for miner in MINERS]
    found += [{"kind": "triplet", "distance": SIMILARITIES[0], "margin": 0.3, "miner": miner} for miner in MINERS]
    found += [{"kind": "triplet", "margin": 0.3, "smooth_loss": True, "miner": miner} for miner in (None, MINERS[1])]
    found += [
        {"kind": "multi_similarity", "miner": {"kind": "multi_similarity"}, "distance": distance}
        for distance in (SIMILARITIES[0], DISTANCES[0])
    ]
    found += [
        {"kind": kind, "reducer": {"kind": reducer}}
        for kind, reducer in itertools.product(FORMULAS, ("mean", "sum", "avg_non_zero"))
    ]
    found += [{"kind": "sup_con", "reducer": {"kind": "threshold", "low": 2.0}}]
    # Exponents up to 2 / temperature apart: in these some tiles share one shift and others do not.
    found += [{"kind": k, "temperature": t} for k, t in itertools.product(("sup_con", "nt_xent"), (0.04, 0.05))]
    found += [{"kind": kind} for kind in CLASSES]
    found += [{"kind": k, "reducer": {"kind": r}} for k, r in itertools.product(CLASSES, ("sum", "avg_non_zero"))]
    found += [{"kind": "arc_face", "reducer": {"kind": "class_weighted", "weights": list(range(1, 9))}}]
    found += [
        {"kind": k, "distance": d} for k in ("n_pairs", "proxy_anchor", "proxy_nca") for d in SIMILARITIES + DISTANCES
    ]
    found += [{"kind": "cos_face", "weight_regularizer": {"kind": "regular_face"}, "margin": 0.1}]
    return [*found, {"kind": "circle", "center": {"weight": 0.1}, "regularizer": {"kind": "lp"}}]


def batch(rows: int = 48, dimension: int = 6) -> tuple[Tensor, Tensor]:
    """Classes of one to many rows in no order, and two equal rows of one class.

    Equal rows of two classes would make ties of a positive and a negative, which rounding breaks on either path.
    """
    generator = torch.Generator().manual_seed(rows)
    labels = torch.randint(0, 6, (rows,), generator=generator)
    labels[5] = 7  # alone in its class
    labels[rows - 2] = labels[7]
    embeddings = torch.randn(rows, dimension, generator=generator, dtype=torch.float64)
    embeddings[7] = embeddings[rows - 2]
    return embeddings, labels


def made(document: dict[str, Any], tiled: bool, dtype: torch.dtype = torch.float64) -> Objective:
    size = objectives.TILED_FROM if tiled else 0
    spec = LOSS.validate_python(document)
    return Objective(spec, num_classes=8, dimension=6, seed=3, dtype=dtype, batch_size=size)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 5 x 17: neither cuts slices, classes or the batch evenly."""
    for module in (layout, class_scores):
        monkeypatch.setattr(module, "ROWS", 5)
    for module, columns in ((layout, 17), (class_scores, 3), (n_pairs, 2)):
        monkeypatch.setattr(module, "COLUMNS", columns)


@pytest.mark.parametrize("document", documents(), ids=lambda document: str(document).replace("'", ""))
def test_tiles_give_value_and_gradient_of_the_plain_path(document: dict[str, Any], small_tiles: None) -> None:
    embeddings, labels = batch()
    plain, tiled = made(document, False), made(document, True)
    assert tiled.tiled is not None, "this spec has a tiled form"
    wanted = evaluate_objective(plain, embeddings, labels, 0, 0)
    assert wanted.cotangents.abs().max() > 1e-6, "nothing to compare"
    group = Group(0, 1, 8)
    found = evaluate_objective(tiled, embeddings, labels, 0, 0, group)
    torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-9, atol=1e-9)
    cotangents = [verdict.cotangents for verdict in (found, wanted)]
    if (document.get("miner") or {}).get("kind") in ("batch_hard", "batch_easy_hard"):
        # Which of two equal rows is the hardest is for rounding to say: their gradients are compared as a sum.
        cotangents = [torch.cat([value, value[7:8] + value[46:47]]) for value in cotangents]
        cotangents = [value[[row for row in range(49) if row not in (7, 46)]] for value in cotangents]
    torch.testing.assert_close(*cotangents, rtol=1e-9, atol=1e-9)
    assert len(found.weights) == len(wanted.weights)
    for one, other in zip(found.weights, wanted.weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [*FORMULAS, "n_pairs"])
@pytest.mark.parametrize("labels", [torch.zeros(16, dtype=torch.long), torch.arange(16)], ids=["one class", "no pairs"])
def test_a_batch_without_negatives_or_positives_is_as_on_the_plain_path(kind: str, labels: Tensor) -> None:
    embeddings = batch(16)[0]
    wanted = evaluate_objective(made({"kind": kind}, False), embeddings, labels, 0, 0)
    found = evaluate_objective(made({"kind": kind}, True), embeddings, labels, 0, 0)
    torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.cotangents, wanted.cotangents, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "document",
    [
        {"kind": "triplet", "swap": True},
        {"kind": "triplet", "miner": {"kind": "distance_weighted"}},
        {"kind": "triplet", "miner": {"kind": "batch_hard", "distance": {"kind": "cosine"}}},
        {"kind": "contrastive", "reducer": {"kind": "per_anchor"}},
        {"kind": "sup_con", "distance": {"kind": "snr"}},
        {"kind": "nca"},
    ],
    ids=str,
)
def test_a_spec_without_a_tiled_form_takes_the_plain_path_at_any_size(document: dict[str, Any]) -> None:
    assert made(document, True).tiled is None


@pytest.mark.parametrize("temperature", [1.0, 0.04, 0.001])
def test_temperatures_neither_overflow_nor_vanish(temperature: float, small_tiles: None) -> None:
    embeddings, labels = batch()
    for kind in ("sup_con", "nt_xent"):
        document = {"kind": kind, "temperature": temperature}
        verdict = evaluate_objective(made(document, True, torch.float32), embeddings, labels, 0, 0, Group(0, 1, 8))
        exact = evaluate_objective(made(document, False), embeddings, labels, 0, 0)
        torch.testing.assert_close(verdict.loss.double(), exact.loss, rtol=1e-4, atol=0)
        size = float(exact.cotangents.abs().max())
        torch.testing.assert_close(verdict.cotangents.double() / size, exact.cotangents / size, rtol=0, atol=1e-3)


@dataclass(frozen=True)
class Within:
    """A score that says between which values it lies, for statistics that are given scores."""

    bounds: tuple[float, float] | None
    similar = True


def shared_shift(rows: int, columns: int, spread: float, bounded: bool) -> tuple[Tensor, Tensor]:
    """Log-sum-exps of float32 scores that lie `spread` apart, of rows and of columns; and in float64, by torch."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(rows, columns, generator=generator) * spread
    scores[0], scores[0, 0] = 0, spread  # one exponent in a row of the smallest
    score: Any = Within((0.0, spread) if bounded else None)
    statistic = linear_log_sum_exp("others", score, 1.0)
    assert isinstance(statistic, BoundedLogSumExp) == (bounded and spread <= NEAR)
    state = statistic.start(torch.zeros(rows + columns, 1))
    tile = layout.Tile(slice(0, rows), slice(rows, rows + columns), None, None)
    sides = [Pairs(tile, False, scores, {}), Pairs(tile, True, scores.T, {})]
    for _ in range(2):  # each pair twice: the second time it meets a state
        statistic.collect(state, sides)
    exact = torch.cat([scores.double().logsumexp(dim) for dim in (1, 0)]) + math.log(2)
    return statistic.finish(state.unsqueeze(0)), exact


@pytest.mark.parametrize("spread", [0.0, 1.0, NEAR - 1e-3, NEAR + 1e-3, 3 * NEAR])
@pytest.mark.parametrize("bounded", [False, True])
def test_one_shift_for_a_tile_or_for_all_is_as_exact_as_one_for_each_row(spread: float, bounded: bool) -> None:
    found, exact = shared_shift(7, 11, spread, bounded)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("document", [{"kind": "triplet"}, {"kind": "triplet", "miner": {"kind": "semihard"}}], ids=str)
def test_triplets_hold_a_number_for_each_positive_of_own_anchors_alone(document: dict[str, Any]) -> None:
    rows, num_slices, each = 1024, 64, 16
    embeddings, labels = torch.randn(rows, 6), torch.arange(rows) // each
    spec = LOSS.validate_python(document)
    objective = Objective(spec, num_classes=64, dimension=6, seed=0, dtype=torch.float32, batch_size=rows)
    with Alive() as alive:
        evaluate_objective(objective, embeddings, labels, 0, 0, Group(0, 1, num_slices))
    a_state_of_every_slice = 4 * num_slices * rows * each
    assert alive.most < a_state_of_every_slice / 2


def test_travelling_tiles_of_one_slice_give_value_and_gradient_of_the_plain_path(
    small_tiles: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "COLUMNS", 11)
    assert layout.can_travel(48 // 8)
    embeddings, labels = batch()
    for kind in FORMULAS:
        wanted = evaluate_objective(made({"kind": kind}, False), embeddings, labels, 0, 0)
        for num_slices in (1, 3, 8):
            found = evaluate_objective(made({"kind": kind}, True), embeddings, labels, 0, 0, Group(0, 1, num_slices))
            torch.testing.assert_close(found.cotangents, wanted.cotangents, rtol=1e-9, atol=1e-9)


def test_every_two_rows_meet_in_one_tile_and_masks_are_those_of_the_labels(small_tiles: None) -> None:
    _, labels = batch()
    for num_slices in (1, 2, 3, 8, 16):
        made_layout = layout.Layout(labels, 48 // num_slices)
        seen = torch.zeros(48, 48, dtype=torch.long)
        for tile in itertools.chain(*(made_layout.tiles(index) for index in range(num_slices))):
            rows, columns = made_layout.order[tile.rows].tolist(), made_layout.order[tile.columns].tolist()
            for (place, row), (index, column) in itertools.product(enumerate(rows), enumerate(columns)):
                outside = {over: mask is not None and bool(mask[place, index]) for over, mask in tile.outside.items()}
                if outside["others"]:
                    assert outside["negatives"] and outside["positives"]
                    continue
                seen[row, column] += 1
                seen[column, row] += 1
                assert outside["negatives"] == (labels[row] == labels[column])
                if tile.same is not None:
                    assert outside["positives"] != outside["negatives"]
        assert (seen == 1 - torch.eye(48)).all()


def test_from_one_side_every_row_meets_all_rows_once(small_tiles: None) -> None:
    _, labels = batch()
    for num_slices in (1, 3, 8):
        made_layout = layout.Layout(labels, 48 // num_slices, one_sided=True)
        seen = torch.zeros(48, 48, dtype=torch.long)
        for tile in itertools.chain(*(made_layout.tiles(index) for index in range(num_slices))):
            seen[tile.rows, tile.columns] += 1
        assert (seen == 1).all()


@pytest.mark.parametrize("rows", [1024, 4096, 5120])
@pytest.mark.parametrize("num_workers", [2, 4])
def test_workers_get_equal_work(rows: int, num_workers: int) -> None:
    made_layout = layout.Layout(torch.arange(rows) // 4, rows // 8)
    work = [0] * num_workers
    for index in range(8):
        for tile in made_layout.tiles(index):
            size = (tile.rows.stop - tile.rows.start) * (tile.columns.stop - tile.columns.start)
            work[index * num_workers // 8] += size
    assert max(work) <= 1.02 * min(work)
