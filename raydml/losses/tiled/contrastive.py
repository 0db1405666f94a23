"""Contrastive loss (Hadsell, Chopra and LeCun 2006, without the square, as pytorch-metric-learning has it)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raydml.catalogue import Contrastive
from raydml.losses.tiled.engine import Formula
from raydml.losses.tiled.layout import Layout
from raydml.losses.tiled.reduction import pair_reduction
from raydml.losses.tiled.statistics import Answers, Sums


def build(spec: Contrastive, loss: Any, similar: bool) -> Formula | None:
    """max(0, d_ip - pos_margin) over positive and max(0, neg_margin - d_in) over negative pairs, each reduced alone."""
    reduce_pairs = pair_reduction(loss)
    if reduce_pairs is None or spec.miner is not None:
        return None
    sign = -1 if similar else 1

    def far(scores: Tensor) -> Tensor:
        return (scores - spec.pos_margin if sign > 0 else spec.pos_margin - scores).relu_()

    def near(scores: Tensor) -> Tensor:
        return (spec.neg_margin - scores if sign > 0 else scores - spec.neg_margin).relu_()

    def reduce(answers: Answers, layout: Layout) -> Tensor:
        total = answers["positive"].new_zeros(())
        for name, counts in (("positive", layout.num_positives), ("negative", layout.num_negatives)):
            cost, above = answers[name].sum(0)
            total = total + reduce_pairs(cost, counts.sum(), above.detach())
        return total

    statistics = {
        "positive": Sums(
            "positives",
            lambda pairs: costs(pairs.keep(far(pairs.scores), "positives", 0)),
            lambda pairs: far(pairs.scores).sign_().mul_(sign),
            mutual=True,
        ),
        "negative": Sums(
            "negatives",
            lambda pairs: costs(pairs.keep(near(pairs.scores), "negatives", 0)),
            lambda pairs: near(pairs.scores).sign_().mul_(-sign),
            mutual=True,
        ),
    }
    return Formula((statistics,), reduce)


def costs(values: Tensor) -> Tensor:
    """The sum of each row and how many are above zero, (r, 2)."""
    return torch.stack([values.sum(1), values.sign_().sum(1)], dim=1)
