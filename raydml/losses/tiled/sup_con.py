"""Supervised contrastive loss (Khosla et al., arXiv 2004.11362, equation 2) as statistics of rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raydml.catalogue import SupCon
from raydml.losses.tiled.engine import Formula
from raydml.losses.tiled.layout import Layout
from raydml.losses.tiled.log_sum_exp import linear_log_sum_exp
from raydml.losses.tiled.reduction import reduce_rows
from raydml.losses.tiled.scores import Score
from raydml.losses.tiled.statistics import Answers, Pairs, Sum


def build(spec: SupCon, loss: Any, score: Score) -> Formula | None:
    """log sum_k exp(s_ik / t) - mean_p s_ip / t of each row with positives; s is -d for a distance."""
    if spec.miner is not None:
        return None
    factor = (1 if score.similar else -1) / spec.temperature

    def value(pairs: Pairs) -> Tensor:
        return pairs.scores * factor

    def reduce(answers: Answers, layout: Layout) -> Tensor:
        if not layout.num_positives.any() or not layout.num_negatives.any():
            return answers["all"].new_zeros(())
        mean = answers["positive"] / layout.num_positives.clamp(min=1)
        return reduce_rows(loss, torch.where(layout.num_positives > 0, answers["all"] - mean, 0), layout.labels)

    statistics = {
        "all": linear_log_sum_exp("others", score, factor),
        "positive": Sum("positives", value, lambda pairs: factor),
    }
    return Formula((statistics,), reduce)
