"""Numbers of a run's health against loops that a child could check."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from raydml.evaluation.health import (
    ROWS,
    ROWS_PER_CLASS,
    compared_rows,
    effective_rank,
    nearest_proxies,
    pair_health,
    silent_share,
    spread,
)


def batch(rows: int, dimension: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, dimension, generator=generator), torch.arange(rows) % classes


def cosine(one: list[float], other: list[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / math.sqrt(sum(a * a for a in one)) / math.sqrt(sum(b * b for b in other))


def test_effective_rank_is_exp_of_the_entropy_of_the_singular_values_shares() -> None:
    embeddings, _ = batch(9, 4, 3)
    rows = embeddings.double().numpy()
    values = np.sqrt(np.linalg.eigvalsh((rows - rows.mean(0)).T @ (rows - rows.mean(0))))
    shares = [value / sum(values) for value in values]
    assert effective_rank(embeddings) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-9)


@pytest.mark.parametrize("directions", [1, 2, 5])
def test_effective_rank_counts_directions_of_equal_weight(directions: int) -> None:
    corners = torch.eye(8)[:directions]
    assert effective_rank(torch.cat([corners, -corners]) + 3) == pytest.approx(directions, rel=1e-6)


@pytest.mark.parametrize("rows", [torch.zeros(6, 3), torch.full((7, 3), 0.1), torch.full((6, 3), -3e38)])
def test_equal_rows_have_no_rank_and_no_spread(rows: Tensor) -> None:
    assert effective_rank(rows) == 0
    assert spread(rows) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("factor", [1e-30, 1e30, 1e200])
def test_rank_and_spread_do_not_depend_on_the_scale(factor: float) -> None:
    embeddings, _ = batch(10, 5, 2)
    assert effective_rank(embeddings.double() * factor) == pytest.approx(effective_rank(embeddings), rel=1e-9)
    assert spread(embeddings.double() * factor) == pytest.approx(spread(embeddings), rel=1e-9)


def test_spread_is_the_mean_distance_to_the_mean_over_that_to_the_origin() -> None:
    embeddings, _ = batch(7, 3, 2)
    rows = (embeddings + 1).double().tolist()
    mean = [sum(row[k] for row in rows) / 7 for k in range(3)]
    to_mean = sum((row[k] - mean[k]) ** 2 for row in rows for k in range(3))
    to_origin = sum(row[k] ** 2 for row in rows for k in range(3))
    assert spread(embeddings + 1) == pytest.approx(math.sqrt(to_mean / to_origin), rel=1e-9)


def test_silent_rows_are_those_without_any_gradient() -> None:
    cotangents = torch.tensor([[0.0, 0.0], [0.0, 1e-30], [-0.0, 0.0], [1.0, -1.0]])
    assert silent_share(cotangents) == 2 / 4


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2, 2], [3, 1, 1, 1, 1, 3, 2], [5, 5, 5, 5, 5, 5, 4]])
def test_pairs_and_triplets_are_those_of_loops_over_all_rows(labels: list[int]) -> None:
    embeddings, _ = batch(len(labels), 3, 1, seed=len(set(labels)))
    rows = embeddings.double().tolist()
    positives: list[float] = []
    negatives: list[float] = []
    hardest: list[float] = []
    ordered = triplets = 0
    for i, anchor in enumerate(rows):
        near = [cosine(anchor, rows[j]) for j in range(len(rows)) if j != i and labels[j] == labels[i]]
        far = [cosine(anchor, rows[j]) for j in range(len(rows)) if labels[j] != labels[i]]
        positives += near
        negatives += far
        hardest += [min(near) - max(far)] if near else []
        ordered += sum(p > n for p in near for n in far)
        triplets += len(near) * len(far)
    expected = {
        "gap": sum(positives) / len(positives) - sum(negatives) / len(negatives),
        "hardest_gap": sum(hardest) / len(hardest),
        "ordered_triplets": ordered / triplets,
    }
    assert pair_health(embeddings, torch.tensor(labels)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [1, 1, 1, 1]])
def test_without_a_positive_or_a_negative_pair_there_is_no_gap(labels: list[int]) -> None:
    assert pair_health(batch(4, 3, 1)[0], torch.tensor(labels)) == {}


def test_equal_similarities_are_no_ordered_triplet() -> None:
    assert pair_health(torch.ones(4, 3), torch.tensor([0, 0, 1, 1]))["ordered_triplets"] == 0


@pytest.mark.parametrize(("rows", "classes"), [(100, 10), (1000, 3), (2000, 100), (1200, 600)])
def test_compared_rows_are_whole_parts_of_many_classes(rows: int, classes: int) -> None:
    labels = torch.randperm(classes, generator=torch.Generator().manual_seed(1)).repeat(rows // classes + 1)[:rows]
    taken: dict[int, list[int]] = {}
    for row, label in enumerate(labels.tolist()):
        taken.setdefault(label, []).append(row)
    expected = [row for label in sorted(taken) for row in taken[label][:ROWS_PER_CLASS]][:ROWS]
    assert compared_rows(labels).tolist() == expected


@pytest.mark.parametrize("tile", [1, 3, 100])
def test_the_nearest_proxy_is_that_of_a_loop_over_all(tile: int) -> None:
    embeddings, _ = batch(6, 3, 1)
    proxies, _ = batch(10, 3, 1, seed=1)
    proxies[7] = proxies[2] = embeddings[0]  # the first of equal ones counts
    proxies = proxies * torch.arange(10).exp2().unsqueeze(1)  # and lengths do not
    rows, others = embeddings.double().tolist(), proxies.double().tolist()
    expected = [max(range(10), key=lambda j: round(cosine(row, others[j]), 12)) for row in rows]
    assert nearest_proxies(embeddings, proxies, tile).tolist() == expected
