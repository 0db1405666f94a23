"""Class-parallel heads: class vectors, and the state of their optimiser, on the workers that own them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor

from raydml import catalogue
from raydml.catalogue import canonical
from raydml.losses.build import build_loss, build_reducer
from raydml.losses.heads.margins import Curricular, Linear, Margin
from raydml.losses.heads.proxy_anchor import ProxyAnchorHead
from raydml.losses.heads.softmax import HeadStep, SoftmaxHead
from raydml.losses.heads.table import ClassTable, Home

__all__ = ["ClassHead", "HeadStep", "Home", "build_head"]

ClassHead = SoftmaxHead | ProxyAnchorHead


def build_head(
    spec: Any, *, num_classes: int, dimension: int, seed: int, dtype: torch.dtype, home: Home
) -> ClassHead | None:
    """The head of a loss that asks for one, None for the others."""
    options = getattr(spec, "class_parallel", None)
    if not isinstance(options, catalogue.ClassParallel):
        return None
    copies = getattr(spec, "sub_centers", 1)
    spread = SPREADS[canonical(spec)](num_classes, dimension) if canonical(spec) in SPREADS else 1.0
    rate = getattr(options, "sample_rate", 1.0)
    table = ClassTable(num_classes, copies * dimension, spread, rate, seed, dtype, home)
    if isinstance(spec, catalogue.ProxyAnchor):
        return ProxyAnchorHead(table, spec)
    reducer = MeanReducer() if getattr(spec, "reducer", None) is None else build_reducer(spec.reducer, num_classes)
    return SoftmaxHead(table, MARGINS[canonical(spec)](spec), reducer)


def _unchanged(score: Tensor) -> Tensor:
    return score


def _as_library(spec: Any) -> Margin:
    """The own class's cosine changed as pytorch-metric-learning does it; the loss is built for one class, for that."""
    loss: Any = build_loss(spec.model_copy(update={"reducer": None}), 1, 1)
    return Margin(spec.scale, loss.modify_cosine_of_target_classes, exact=spec.class_parallel.gradient == "exact")


MARGINS: dict[str, Callable[[Any], Margin]] = {
    "arc_face": _as_library,
    "cos_face": _as_library,
    "curricular_face": Curricular,
    "normalized_softmax": lambda spec: Margin(1 / spec.temperature, _unchanged),
    "softmax": lambda spec: Linear(1.0, _unchanged),
    "sub_center_arc_face": _as_library,
}

# Standard deviation of fresh class vectors, where it is not 1: as the library, and as a linear layer, have it.
SPREADS: dict[str, Callable[[int, int], float]] = {
    "proxy_anchor": lambda classes, dimension: math.sqrt(2 / classes),
    "softmax": lambda classes, dimension: math.sqrt(1 / dimension),
}
