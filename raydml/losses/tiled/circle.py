"""Circle loss (Sun et al., arXiv 2002.10857, equations 6-8) as statistics of rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raydml.catalogue import Circle
from raydml.losses.tiled.engine import Formula
from raydml.losses.tiled.layout import Layout
from raydml.losses.tiled.log_sum_exp import LogSumExp
from raydml.losses.tiled.reduction import log_one_plus, reduce_rows
from raydml.losses.tiled.scores import Score
from raydml.losses.tiled.statistics import Answers, Pairs


def build(spec: Circle, loss: Any, score: Score) -> Formula | None:
    """log(1 + sum_p exp(-gamma a_p (s_p - 1 + m)) sum_n exp(gamma a_n (s_n - m))) of each row, a held fixed."""
    if spec.miner is not None:
        return None

    def pull(pairs: Pairs) -> Tensor:
        return (1 + spec.m - pairs.scores).relu_() * -spec.gamma

    def push(pairs: Pairs) -> Tensor:
        return (pairs.scores + spec.m).relu_() * spec.gamma

    def reduce(answers: Answers, layout: Layout) -> Tensor:
        counted = (layout.num_positives > 0) & (layout.num_negatives > 0)
        total = torch.where(counted, answers["positive"], 0) + torch.where(counted, answers["negative"], 0)
        return reduce_rows(loss, torch.where(counted, log_one_plus(total), 0), layout.labels)

    statistics = {
        "positive": LogSumExp("positives", lambda pairs: pull(pairs) * (pairs.scores - (1 - spec.m)), pull),
        "negative": LogSumExp("negatives", lambda pairs: push(pairs) * (pairs.scores - spec.m), push),
    }
    return Formula((statistics,), reduce)
