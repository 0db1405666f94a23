"""Lifted structure (Song et al., arXiv 1511.06452) and its generalised form (Hermans et al., arXiv 1703.07737)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raydml.catalogue import GeneralizedLiftedStructure, LiftedStructure
from raydml.losses.tiled.engine import Formula
from raydml.losses.tiled.layout import Layout
from raydml.losses.tiled.log_sum_exp import linear_log_sum_exp
from raydml.losses.tiled.reduction import pair_reduction, reduce_rows, through
from raydml.losses.tiled.scores import Score
from raydml.losses.tiled.statistics import Answers, Pairs, Statistic, Sums


def build(spec: LiftedStructure, loss: Any, score: Score) -> Formula | None:
    """max(0, log sum_n exp(neg_margin - d_n) + d_ap - pos_margin)^2 / 2 of each positive pair, n negative to a or p."""
    reduce_pairs = pair_reduction(loss)
    if reduce_pairs is None or spec.miner is not None:
        return None
    sign = -1 if score.similar else 1

    def both(pairs: Pairs) -> Tensor:
        return torch.logaddexp(pairs.own("negative"), pairs.other("negative"))

    def excess(pairs: Pairs, both: Tensor) -> Tensor:
        return ((pairs.scores - spec.pos_margin) * sign + both).relu_()

    def terms(pairs: Pairs) -> Tensor:
        """The term, its share of d(term) / d(negative), and whether it is above zero, (3, a, r)."""
        against = both(pairs)
        above = excess(pairs, against)
        # A row's negatives count in its pairs as an anchor and, equally, in those as a positive.
        share = (pairs.own("negative") - against).exp_().mul_(above).mul_(2)
        return torch.stack([above.square() / 2, share, above.sign()])

    def reduce(answers: Answers, layout: Layout) -> Tensor:
        if not layout.num_positives.any() or not layout.num_negatives.any():
            return answers["terms"].new_zeros(())
        term, share, above = answers["terms"].unbind(1)
        return reduce_pairs(
            through(term.sum(), answers["negative"], share), layout.num_positives.sum(), above.detach().sum()
        )

    against = {"negative": negatives(spec, score, sign)}
    sums = {"terms": Sums("positives", terms, lambda pairs: excess(pairs, both(pairs)) * sign, count=3)}
    return Formula((against, sums), reduce)


def build_generalized(spec: GeneralizedLiftedStructure, loss: Any, score: Score) -> Formula | None:
    """max(0, log sum_p exp(d_p - pos_margin) + log sum_n exp(neg_margin - d_n)) of each row; of no pairs: 0."""
    if spec.miner is not None:
        return None
    sign = -1 if score.similar else 1

    def reduce(answers: Answers, layout: Layout) -> Tensor:
        positive = torch.where(layout.num_positives > 0, answers["positive"], 0)
        negative = torch.where(layout.num_negatives > 0, answers["negative"], 0)
        return reduce_rows(loss, (positive + negative).relu(), layout.labels)

    statistics = {
        "positive": linear_log_sum_exp("positives", score, sign, -sign * spec.pos_margin),
        "negative": negatives(spec, score, sign),
    }
    return Formula((statistics,), reduce)


def negatives(spec: LiftedStructure | GeneralizedLiftedStructure, score: Score, sign: int) -> Statistic:
    """log sum_n exp(neg_margin - d_n)."""
    return linear_log_sum_exp("negatives", score, -sign, sign * spec.neg_margin)
