"""Multi-similarity loss and its miner (Wang et al., arXiv 1904.06627, equations 10-16) as statistics of rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raydml import catalogue
from raydml.losses.tiled.engine import Formula
from raydml.losses.tiled.layout import Layout
from raydml.losses.tiled.reduction import log_one_plus, reduce_rows
from raydml.losses.tiled.statistics import Answers, Largest, LogSumExp, Pairs, Statistic


def build(spec: catalogue.MultiSimilarity, loss: Any, similar: bool) -> Formula | None:
    """log(1 + sum_p exp(-alpha (s - base))) / alpha + log(1 + sum_n exp(beta (s - base))) / beta of each row."""
    miner = spec.miner
    if miner is not None and not (isinstance(miner, catalogue.MultiSimilarityPairs) and miner.distance is None):
        return None
    sign = -1 if similar else 1  # times the score: larger is farther

    def mined(values: Tensor, keep: Tensor) -> Tensor:
        return values.masked_fill(~keep, -torch.inf)

    def positive(pairs: Pairs) -> Tensor:
        values = (pairs.scores - spec.base) * (sign * spec.alpha)
        if miner is None:
            return values
        return mined(values, pairs.scores * sign + miner.epsilon > -pairs.own["nearest"][..., 0])

    def negative(pairs: Pairs) -> Tensor:
        values = (spec.base - pairs.scores) * (sign * spec.beta)
        if miner is None:
            return values
        return mined(values, pairs.scores * sign - miner.epsilon < pairs.own["farthest"][..., 0])

    def reduce(answers: Answers, layout: Layout) -> Tensor:
        positive, negative = log_one_plus(answers["positive"]), log_one_plus(answers["negative"])
        return reduce_rows(loss, positive / spec.alpha + negative / spec.beta, layout.labels)

    # The miner keeps positives that are not much nearer than the nearest negative, and negatives that are not much
    # farther than the farthest positive; a row that lacks either keeps nothing.
    hardest: dict[str, Statistic] = {
        "farthest": Largest("positives", lambda pairs: pairs.scores * sign),
        "nearest": Largest("negatives", lambda pairs: pairs.scores * -sign),
    }
    statistics: dict[str, Statistic] = {
        "positive": LogSumExp("positives", positive, lambda pairs: sign * spec.alpha),
        "negative": LogSumExp("negatives", negative, lambda pairs: -sign * spec.beta),
    }
    return Formula((statistics,) if miner is None else (hardest, statistics), reduce)
