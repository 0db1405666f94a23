"""Evaluate an objective: a global batch in, the loss and the gradients of own rows out, nothing touched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raydml.losses.heads import HeadStep
from raydml.losses.objective import Objective
from raydml.losses.randomness import keyed
from raydml.parallel import Group


@dataclass(frozen=True)
class Verdict:
    """What a step needs of its loss; all tensors are detached and in the objective's dtype."""

    loss: Tensor  # shape ()
    cotangents: Tensor  # dL/d(own embeddings), (own rows, D)
    weights: tuple[Tensor, ...]  # gradients in the order of objective.parameters()
    statistics: dict[str, float]
    head: HeadStep | None = None  # of a class-parallel head, what its owners keep


def evaluate_objective(
    objective: Objective, embeddings: Tensor, labels: Tensor, step: int, seed: int, group: Group | None = None
) -> Verdict:
    """Loss and gradients of embeddings (B, D) and labels (B,), a pure function of the arguments.

    All workers of the group call it with the same batch, and each gets the cotangents of its own rows; without a group
    all rows are own. Where the objective travels a worker may give its own rows alone, (own rows, D): the bits are the
    same. Labels are those of the whole batch always. The objective is left as it was, so an aborted step never was;
    weights that the loss does not reach get zeros, and so does everything in a batch that yields no tuples.
    """
    group = group or Group(0, 1, 1)
    size = len(labels) // group.num_slices
    own = slice(group.owned.start * size, group.owned.stop * size)
    alone = objective.travels(size) and len(embeddings) == own.stop - own.start
    fitting = labels.ndim == 1 and (alone or len(embeddings) == len(labels))
    assert embeddings.ndim == 2 and fitting and not labels.is_floating_point(), (
        f"embeddings {tuple(embeddings.shape)} with {labels.dtype} labels {tuple(labels.shape)}: wanted are (B, D) and "
        "a class number for each row"
    )
    labels = labels.long()  # shorter integers are no indices everywhere, and bytes would be masks
    assert objective.num_classes is None or (labels.min() >= 0 and labels.max() < objective.num_classes), (
        f"labels run from {int(labels.min())} to {int(labels.max())}, and the loss has {objective.num_classes} classes"
    )
    leaf = embeddings.detach().to(objective.dtype).requires_grad_()
    inputs = [leaf, *objective.parameters()]
    full_precision = torch.autocast(leaf.device.type, enabled=False)  # autocast would reach into the backward pass too
    with keyed(seed, step, leaf.device), untouched(objective), torch.enable_grad(), full_precision:
        loss, statistics = objective.measure(leaf, labels)
        gradients = gradients_of(loss, inputs)
        total = [gradients[0] if alone else gradients[0][own], *gradients[1:]]
        if objective.tiled is not None:
            added, cotangents, weights = objective.tiled.evaluate(leaf.detach(), labels, group)
            loss, total[0] = loss + added, total[0] + cotangents
            places = {id(parameter): place for place, parameter in enumerate(inputs)}
            for parameter, gradient in weights:
                total[places[id(parameter)]] = total[places[id(parameter)]] + gradient
        head = None
        if objective.head is not None:
            with torch.no_grad():
                added, cotangents, head = objective.head.evaluate(leaf.detach(), labels, step)
            loss, total[0] = loss + added, total[0] + cotangents
    return Verdict(loss.detach(), total[0], tuple(total[1:]), statistics, head)


def gradients_of(loss: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """dL/d(input) for each input, zeros where the loss does not depend on it."""
    if not loss.requires_grad:
        return tuple(torch.zeros_like(value) for value in inputs)
    return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Put back every attribute that a forward pass rebinds: counters and index lists of miners and losses."""
    before: list[tuple[nn.Module, dict[str, Any]]] = [(part, dict(vars(part))) for part in module.modules()]
    try:
        yield
    finally:
        for part, attributes in before:
            vars(part).clear()
            vars(part).update(attributes)
