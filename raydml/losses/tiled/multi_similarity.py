"""Multi-similarity loss and its miner (Wang et al., arXiv 1904.06627, equations 10-16) as statistics of rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raydml import catalogue
from raydml.losses.tiled.engine import Formula
from raydml.losses.tiled.layout import Layout
from raydml.losses.tiled.log_sum_exp import LogSumExp, linear_log_sum_exp
from raydml.losses.tiled.reduction import log_one_plus, reduce_rows
from raydml.losses.tiled.scores import Score
from raydml.losses.tiled.statistics import Answers, Largest, Pairs


def build(spec: catalogue.MultiSimilarity, loss: Any, score: Score) -> Formula | None:
    """log(1 + sum_p exp(-alpha (s - base))) / alpha + log(1 + sum_n exp(beta (s - base))) / beta of each row."""
    miner = spec.miner
    if miner is not None and not (isinstance(miner, catalogue.MultiSimilarityPairs) and miner.distance is None):
        return None
    sign = -1 if score.similar else 1  # times the score: larger is farther

    pull = linear_log_sum_exp("positives", score, sign * spec.alpha, -sign * spec.alpha * spec.base)
    push = linear_log_sum_exp("negatives", score, -sign * spec.beta, sign * spec.beta * spec.base)

    def reduce(answers: Answers, layout: Layout) -> Tensor:
        positive, negative = log_one_plus(answers["positive"]), log_one_plus(answers["negative"])
        return reduce_rows(loss, positive / spec.alpha + negative / spec.beta, layout.labels)

    if miner is None:
        return Formula(({"positive": pull, "negative": push},), reduce)
    epsilon = miner.epsilon

    def positive(pairs: Pairs) -> Tensor:
        kept = pairs.scores * sign + epsilon > -pairs.own("nearest")[..., 0]
        return pull.value(pairs).masked_fill_(~kept, -torch.inf)

    def negative(pairs: Pairs) -> Tensor:
        kept = pairs.scores * sign - epsilon < pairs.own("farthest")[..., 0]
        return push.value(pairs).masked_fill_(~kept, -torch.inf)

    # The miner keeps positives that are not much nearer than the nearest negative, and negatives that are not much
    # farther than the farthest positive; a row that lacks either keeps nothing.
    hardest = {
        "farthest": Largest("positives", lambda pairs: pairs.scores * sign),
        "nearest": Largest("negatives", lambda pairs: pairs.scores * -sign),
    }
    mined = {
        "positive": LogSumExp("positives", positive, pull.slope),
        "negative": LogSumExp("negatives", negative, push.slope),
    }
    return Formula((hardest, mined), reduce)
