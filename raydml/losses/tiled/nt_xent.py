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
from raydml.losses.tiled.scores import Score
from raydml.losses.tiled.statistics import Answers, Pairs, Sums


def build(spec: NTXent, loss: Any, score: Score) -> Formula | None:
    """-log(exp(s_ip) / (exp(s_ip) + sum_n exp(s_in))) = log(1 + exp(log sum_n exp(s_in) - s_ip)), s / temperature."""
    reduce_pairs = pair_reduction(loss)
    if reduce_pairs is None or spec.miner is not None:
        return None
    factor = (1 if score.similar else -1) / spec.temperature

    def excess(pairs: Pairs) -> Tensor:
        return torch.sub(pairs.own("negative"), pairs.scores, alpha=factor)

    def terms(pairs: Pairs) -> Tensor:
        """The term, its share of d(term) / d(negative), and whether it is above zero, (3, a, r)."""
        above = excess(pairs)
        term = log_one_plus(above)
        return torch.stack([term, above.sigmoid(), term.sign()])

    def reduce(answers: Answers, layout: Layout) -> Tensor:
        if not layout.num_positives.any() or not layout.num_negatives.any():
            return answers["terms"].new_zeros(())
        term, share, above = answers["terms"].unbind(1)
        total = through(term.sum(), answers["negative"], share)
        return reduce_pairs(total, layout.num_positives.sum(), above.detach().sum())

    against = {"negative": linear_log_sum_exp("negatives", score, factor)}
    sums = {"terms": Sums("positives", terms, lambda pairs: excess(pairs).sigmoid() * -factor, count=3)}
    return Formula((against, sums), reduce)
