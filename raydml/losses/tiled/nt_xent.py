"""NT-Xent, also InfoNCE (van den Oord et al., arXiv 1807.03748): one term for each positive pair, as statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raydml.catalogue import NTXent
from raydml.losses.tiled.engine import Formula
from raydml.losses.tiled.layout import Layout
from raydml.losses.tiled.log_sum_exp import linear_log_sum_exp
from raydml.losses.tiled.reduction import log_one_plus, pair_reduction, through
from raydml.losses.tiled.statistics import Answers, Pairs, Sum


def build(spec: NTXent, loss: Any, similar: bool) -> Formula | None:
    """-log(exp(s_ip) / (exp(s_ip) + sum_n exp(s_in))) = log(1 + exp(log sum_n exp(s_in) - s_ip)), s / temperature."""
    reduce_pairs = pair_reduction(loss)
    if reduce_pairs is None or spec.miner is not None:
        return None
    factor = (1 if similar else -1) / spec.temperature

    def value(pairs: Pairs) -> Tensor:
        return pairs.scores * factor

    def excess(pairs: Pairs) -> Tensor:
        return pairs.own["negative"] - value(pairs)

    def reduce(answers: Answers, layout: Layout) -> Tensor:
        if not layout.num_positives.any() or not layout.num_negatives.any():
            return answers["term"].new_zeros(())
        total = through(answers["term"].sum(), answers["negative"], answers["share"])
        return reduce_pairs(total, layout.num_positives.sum(), answers["above"].detach().sum())

    against = {"negative": linear_log_sum_exp("negatives", factor)}
    terms = {
        "term": Sum("positives", lambda p: log_one_plus(excess(p)), lambda p: excess(p).sigmoid() * -factor),
        "share": Sum("positives", lambda p: torch.sigmoid(excess(p))),  # d(term) / d(negative)
        "above": Sum("positives", lambda p: (log_one_plus(excess(p)) > 0).to(p.scores.dtype)),
    }
    return Formula((against, terms), reduce)
