"""Contrastive loss (Hadsell, Chopra and LeCun 2006, without the square, as pytorch-metric-learning has it)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from raydml.catalogue import Contrastive
from raydml.losses.tiled.engine import Formula
from raydml.losses.tiled.layout import Layout
from raydml.losses.tiled.reduction import pair_reduction
from raydml.losses.tiled.scores import Score
from raydml.losses.tiled.statistics import Answers, Costs, Values


def build(spec: Contrastive, loss: Any, score: Score) -> Formula | None:
    """max(0, d_ip - pos_margin) over positive and max(0, neg_margin - d_in) over negative pairs, each reduced alone."""
    reduce_pairs = pair_reduction(loss)
    if reduce_pairs is None or spec.miner is not None:
        return None
    sign = -1 if score.similar else 1

    def reduce(answers: Answers, layout: Layout) -> Tensor:
        total = answers["positive"].new_zeros(())
        for name, counts in (("positive", layout.num_positives), ("negative", layout.num_negatives)):
            cost, above = answers[name].sum(0)
            total = total + reduce_pairs(cost, counts.sum(), above.detach())
        return total

    def beyond(margin: float, sign: int) -> Values:
        """Scores above the margin, or what they lack to it, in one pass over a tile."""
        return lambda pairs: pairs.scores - margin if sign > 0 else margin - pairs.scores

    statistics = {
        "positive": Costs("positives", beyond(spec.pos_margin, sign), lambda pairs: sign),
        "negative": Costs("negatives", beyond(spec.neg_margin, -sign), lambda pairs: -sign),
    }
    return Formula((statistics,), reduce)
