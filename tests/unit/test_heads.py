"""Class-parallel heads on one worker against pytorch-metric-learning, and against loops a child could check."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from pytorch_metric_learning import losses
from torch import Tensor
from torch.nn import functional

from raydml.losses import Home, Objective, evaluate_objective
from raydml.losses.heads import scores
from raydml.losses.heads.sampling import hashed, sampled
from raydml.losses.heads.table import Shards
from raydml.parallel import Group
from raydml.spec import Sgd
from tests.unit.test_losses import LOSS

DIMENSION, SEED = 6, 3
CPU = torch.device("cpu")
LIBRARY: dict[str, tuple[dict[str, Any], Any]] = {
    "arc_face": ({"scale": 16}, losses.ArcFaceLoss),
    "cos_face": ({"scale": 16}, losses.CosFaceLoss),
    "sub_center_arc_face": ({"scale": 16, "sub_centers": 3}, losses.SubCenterArcFaceLoss),
    "normalized_softmax": ({"temperature": 0.1}, losses.NormalizedSoftmaxLoss),
    "proxy_anchor": ({"alpha": 8}, losses.ProxyAnchorLoss),
}
OWN = ("softmax", "curricular_face")
CLASSES = (29, 5, 8, 1)  # uneven shards of 8, fewer than shards, one class a shard, and one class alone


def home(group: Group | None = None, optimizer: Any = None) -> Home:
    return Home(group or Group(0, 1, 8), CPU, optimizer or Sgd(), lambda step: 0.1)


def objective(document: dict[str, Any], num_classes: int, at: Home | None = None, **changes: Any) -> Objective:
    options = {"num_classes": num_classes, "dimension": DIMENSION, "seed": SEED, "dtype": torch.float64} | changes
    return Objective(LOSS.validate_python(document), home=at or home(), **options)


def batch(num_classes: int, rows: int = 48) -> tuple[Tensor, Tensor]:
    """Classes of one to many rows in no order; not every class has one."""
    generator = torch.Generator().manual_seed(rows + num_classes)
    labels = torch.randint(0, max(1, num_classes - 1), (rows,), generator=generator)
    return torch.randn(rows, DIMENSION, generator=generator, dtype=torch.float64), labels


def vectors(made: Objective) -> Tensor:
    """All class vectors in order of classes, (C x K, D), of a worker that owns them all."""
    assert made.head is not None
    parts = made.head.table.parts()
    return torch.cat([part["vectors"] for _, part in sorted(parts.items())]).reshape(-1, DIMENSION).clone()


def plain_loss(kind: str, embeddings: Tensor, labels: Tensor, weights: Tensor, step: dict[str, Any]) -> Tensor:
    """The heads that the library has not, row by row."""
    total = embeddings.new_zeros(())
    if kind == "softmax":
        for row, label in zip(embeddings, labels.tolist(), strict=True):
            total = total - functional.log_softmax(weights @ row, dim=0)[label]
        return total / len(labels)
    cosines = functional.normalize(embeddings) @ functional.normalize(weights).T
    easiness = 0.01 * cosines[torch.arange(len(labels)), labels].mean().detach()
    margin = math.radians(28.6)
    for cosine, label in zip(cosines, labels.tolist(), strict=True):
        own = cosine[label]
        added = torch.cos(torch.acos(own) + margin)
        target = added if own > math.cos(math.pi - margin) else own - math.sin(math.pi - margin) * margin
        logits = [
            target if other == label else value * (easiness + value) if value > added else value
            for other, value in enumerate(cosine)
        ]
        total = total - functional.log_softmax(torch.stack(logits) * step["scale"], dim=0)[label]
    return total / len(labels)


def wanted(kind: str, embeddings: Tensor, labels: Tensor, weights: Tensor, options: dict[str, Any]) -> list[Tensor]:
    """Loss, dL/d(embeddings) and dL/d(vectors) of one process that holds everything."""
    leaf = embeddings.clone().requires_grad_()
    if kind in OWN:
        parameter = weights.clone().requires_grad_()
        loss = plain_loss(kind, leaf, labels, parameter, options)
        return [loss.detach(), *torch.autograd.grad(loss, [leaf, parameter])]
    classes = len(weights) // options.get("sub_centers", 1)
    theirs = LIBRARY[kind][1](num_classes=classes, embedding_size=DIMENSION, **options).double()
    (parameter,) = theirs.parameters()
    columns = kind != "proxy_anchor"
    parameter.data.copy_(weights.T if columns else weights)
    loss = theirs(leaf, labels)
    of_leaf, of_parameter = torch.autograd.grad(loss, [leaf, parameter])
    return [loss.detach(), of_leaf, of_parameter.T if columns else of_parameter]


def options_of(kind: str) -> dict[str, Any]:
    return LIBRARY[kind][0] if kind in LIBRARY else {"scale": 16} if kind == "curricular_face" else {}


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 5 x 3: neither cuts the batch or the classes of a shard evenly."""
    monkeypatch.setattr(scores, "ROWS", 5)
    monkeypatch.setattr(scores, "COLUMNS", 3)


@pytest.mark.parametrize("num_classes", CLASSES)
@pytest.mark.parametrize("kind", [*LIBRARY, *OWN])
def test_heads_give_value_and_gradient_of_one_process_with_all_classes(
    kind: str, num_classes: int, small_tiles: None
) -> None:
    made = objective({"kind": kind, "class_parallel": True, **options_of(kind)}, num_classes)
    embeddings, labels = batch(num_classes)
    theirs = wanted(kind, embeddings, labels, vectors(made), options_of(kind))
    found = evaluate_objective(made, embeddings, labels, 0, 0)
    assert found.head is not None
    of_vectors = torch.cat([gradient for _, gradient in found.head.gradients]).reshape(-1, DIMENSION)
    for got, want in zip((found.loss, found.cotangents, of_vectors), theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    if num_classes > 1:
        assert theirs[1].abs().max() > 1e-6, "nothing to compare"
