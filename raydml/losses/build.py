"""One entry of the catalogue in, the module of pytorch-metric-learning that it names out."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel
from torch import nn

from raydml import catalogue
from raydml.errors import SpecError
from raydml.losses.table import DISTANCES, LOSSES, MINERS, REDUCERS, REGULARIZERS

# Fields that hold another entry, or that the objective itself applies: not arguments of the constructor.
PARTS = {
    "kind",
    "center",
    "class_parallel",
    "distance",
    "memory",
    "miner",
    "reducer",
    "regularizer",
    "weight_regularizer",
}
ORDERS = {"euclidean": 2, "manhattan": 1}  # p of the short names of LpDistance


def parameters(entry: BaseModel) -> dict[str, Any]:
    """The entry's own numbers, by constructor argument."""
    return {name: getattr(entry, name) for name in type(entry).model_fields if name not in PARTS}


def build_distance(entry: Any) -> nn.Module:
    """A distance matrix (B, D), (N, D) -> (B, N)."""
    order = {"p": ORDERS[entry.kind]} if entry.kind in ORDERS else {}
    module: nn.Module = DISTANCES[entry.kind](**parameters(entry), **order)
    return module


def build_reducer(entry: Any, num_classes: int) -> nn.Module:
    """What turns the terms of a loss into one number."""
    arguments = parameters(entry)
    if isinstance(entry, catalogue.ClassWeighted):
        if len(entry.weights) != num_classes:
            raise SpecError(
                f"loss.reducer.weights has {len(entry.weights)} numbers and the training data {num_classes} classes: "
                "give one weight a class",
                path="loss.reducer.weights",
            )
        arguments = {"weights": torch.tensor(entry.weights)}
    if isinstance(entry, catalogue.PerAnchor):
        arguments = {"reducer": REDUCERS[entry.reducer]()}
    module: nn.Module = REDUCERS[entry.kind](**arguments)
    return module


def build_miner(entry: Any, loss_distance: Any) -> nn.Module:
    """What chooses pairs or triplets; it measures as the loss does unless it names a distance."""
    if isinstance(entry, catalogue.Angular | catalogue.DistanceWeighted):  # defined on unit vectors alone
        module: nn.Module = MINERS[entry.kind](**parameters(entry))
        return module
    distance = loss_distance if entry.distance is None else build_distance(entry.distance)
    if isinstance(entry, catalogue.Triplets):
        module = MINERS["triplet_margin"](margin=entry.margin, type_of_triplets=entry.kind, distance=distance)
    else:
        module = MINERS[entry.kind](**parameters(entry), distance=distance)
    return module


def build_regularizer(entry: Any, loss: Any) -> nn.Module:
    """A penalty (rows, D) -> scalar; sparse_centers counts the centres of `loss`."""
    arguments = parameters(entry)
    del arguments["weight"]
    if isinstance(entry, catalogue.SparseCenters):
        centers = loss.centers_per_class if hasattr(loss, "centers_per_class") else loss.sub_centers
        arguments = {"num_classes": loss.num_classes, "centers_per_class": centers}
    module: nn.Module = REGULARIZERS[entry.kind](**arguments)
    return module


def build_loss(entry: Any, num_classes: int, dimension: int) -> nn.Module:
    """The loss without its miner and regularisers, which the objective applies."""
    known = {"num_classes": num_classes, "embedding_size": dimension, "descriptors_dim": dimension}
    arguments = parameters(entry) | {name: known[name] for name in entry.filled}
    if isinstance(entry, catalogue.MarginLoss) and not entry.learn_beta:
        arguments["num_classes"] = None  # one fixed beta needs no copy for each class
    if getattr(entry, "distance", None) is not None:
        arguments["distance"] = build_distance(entry.distance)
    if getattr(entry, "reducer", None) is not None:
        arguments["reducer"] = build_reducer(entry.reducer, num_classes)
    module: nn.Module = LOSSES[catalogue.canonical(entry)](**arguments)
    return module
