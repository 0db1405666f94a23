"""Lifted structure (Song et al., arXiv 1511.06452) and its generalised form (Hermans et al., arXiv 1703.07737)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raydml.catalogue import GeneralizedLiftedStructure, LiftedStructure
from raydml.losses.tiled.engine import Formula
from raydml.losses.tiled.layout import Layout
from raydml.losses.tiled.log_sum_exp import LogSumExp, linear_log_sum_exp
from raydml.losses.tiled.reduction import pair_reduction, reduce_rows, through
from raydml.losses.tiled.statistics import Answers, Pairs, Sum


def build(spec: LiftedStructure, loss: Any, similar: bool) -> Formula | None:
    """max(0, log sum_n exp(neg_margin - d_n) + d_ap - pos_margin)^2 / 2 of each positive pair, n negative to a or p."""
    reduce_pairs = pair_reduction(loss)
    if reduce_pairs is None or spec.miner is not None:
        return None
    sign = -1 if similar else 1

    def both(pairs: Pairs) -> Tensor:
        return torch.logaddexp(pairs.own["negative"], pairs.other["negative"])

    def excess(pairs: Pairs) -> Tensor:
        return (both(pairs) + (pairs.scores - spec.pos_margin) * sign).relu_()

    def share(pairs: Pairs) -> Tensor:
        # A row's negatives count in its pairs as an anchor and, equally, in those as a positive.
        return 2 * excess(pairs) * (pairs.own["negative"] - both(pairs)).exp_()

    def reduce(answers: Answers, layout: Layout) -> Tensor:
        if not layout.num_positives.any() or not layout.num_negatives.any():
            return answers["term"].new_zeros(())
        total = through(answers["term"].sum(), answers["negative"], answers["share"])
        return reduce_pairs(total, layout.num_positives.sum(), answers["above"].detach().sum())

    against = {"negative": negatives(spec, sign)}
    terms = {
        "term": Sum("positives", lambda pairs: excess(pairs).square_() / 2, lambda pairs: excess(pairs) * sign),
        "share": Sum("positives", share),
        "above": Sum("positives", lambda pairs: (excess(pairs) > 0).to(pairs.scores.dtype)),
    }
    return Formula((against, terms), reduce)


def build_generalized(spec: GeneralizedLiftedStructure, loss: Any, similar: bool) -> Formula | None:
    """max(0, log sum_p exp(d_p - pos_margin) + log sum_n exp(neg_margin - d_n)) of each row; of no pairs: 0."""
    if spec.miner is not None:
        return None
    sign = -1 if similar else 1

    def reduce(answers: Answers, layout: Layout) -> Tensor:
        positive = torch.where(layout.num_positives > 0, answers["positive"], 0)
        negative = torch.where(layout.num_negatives > 0, answers["negative"], 0)
        return reduce_rows(loss, (positive + negative).relu(), layout.labels)

    statistics = {
        "positive": linear_log_sum_exp("positives", sign, -sign * spec.pos_margin),
        "negative": negatives(spec, sign),
    }
    return Formula((statistics,), reduce)


def negatives(spec: LiftedStructure | GeneralizedLiftedStructure, sign: int) -> LogSumExp:
    """log sum_n exp(neg_margin - d_n)."""
    return linear_log_sum_exp("negatives", -sign, sign * spec.neg_margin)
