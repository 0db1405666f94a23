"""Triplet margin loss (Schroff et al., arXiv 1503.03832, without the square) over all, mined or extreme triplets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from raydml import catalogue
from raydml.losses.tiled.all_triplets import TripletRule
from raydml.losses.tiled.engine import Formula
from raydml.losses.tiled.layout import Layout
from raydml.losses.tiled.reduction import Reduce, log_one_plus, pair_reduction
from raydml.losses.tiled.scores import Score
from raydml.losses.tiled.statistics import Answers, Largest, Pairs, Statistic


def build(spec: catalogue.TripletMargin, loss: Any, score: Score) -> Formula | TripletRule | None:
    """max(0, margin - gap), or softplus of it, with gap = d_an - d_ap; by miner: one a family."""
    reduce = pair_reduction(loss)
    miner = spec.miner
    if reduce is None or spec.swap or spec.triplets_per_anchor != "all" or getattr(miner, "distance", None) is not None:
        return None
    sign = -1 if score.similar else 1
    match miner:
        case None:
            return _all_triplets(spec, reduce, None)
        case catalogue.Triplets():
            return _all_triplets(spec, reduce, (miner.kind, miner.margin))
        case catalogue.TripletMarginTriplets():
            return _all_triplets(spec, reduce, (miner.type_of_triplets, miner.margin))
        case catalogue.BatchHard() | catalogue.BatchEasyHard():
            strategies = getattr(miner, "pos_strategy", "hard"), getattr(miner, "neg_strategy", "hard")
            ranges = miner.allowed_pos_range, miner.allowed_neg_range
            return (
                _one_each(spec, reduce, sign, strategies)
                if "all" not in strategies and ranges == (None, None)
                else None
            )
        case _:
            return None


def _cost(spec: catalogue.TripletMargin, gap: Tensor) -> Tensor:
    return log_one_plus(spec.margin - gap) if spec.smooth_loss else (spec.margin - gap).relu()


def _push(spec: catalogue.TripletMargin, gap: Tensor) -> Tensor:
    """-d(cost) / d(gap)."""
    return (spec.margin - gap).sigmoid() if spec.smooth_loss else (gap < spec.margin).to(gap.dtype)


def _all_triplets(spec: catalogue.TripletMargin, reduce: Reduce, mined: tuple[str, float] | None) -> TripletRule:
    """Every positive of the anchor against every negative, or those that the miner chooses."""

    def chosen(gap: Tensor) -> Tensor:
        if mined is None:
            return gap.isfinite()
        kind, margin = mined
        return {
            "all": gap <= margin,
            "hard": (gap <= 0) & (gap <= margin),
            "semihard": (gap > 0) & (gap <= margin),
            "easy": gap > margin,
        }[kind]

    return TripletRule(chosen, lambda gap: _cost(spec, gap), lambda gap: _push(spec, gap), reduce)


def _one_each(spec: catalogue.TripletMargin, reduce: Reduce, sign: int, strategies: tuple[str, str]) -> Formula:
    """One positive and one negative an anchor, hard or easy; semihard: the hardest that the other does not pass."""
    positive, negative = strategies
    # Farness of the one that is sought, so that larger is more sought.
    directions = {"positive": 1 if positive != "easy" else -1, "negative": -1 if negative != "easy" else 1}

    def extreme(name: str, other: str | None = None) -> Largest:
        direction = directions[name] * sign

        def value(pairs: Pairs) -> Tensor:
            values = pairs.scores * direction
            if other is None:
                return values
            limit = pairs.own(other)[..., 0] * directions[other]  # its farness
            farness = pairs.scores * sign
            beyond = farness >= limit if name == "positive" else farness <= limit
            return values.masked_fill_(beyond, -torch.inf)

        return Largest("positives" if name == "positive" else "negatives", value, lambda pairs: direction)

    def loss(answers: Answers, layout: Layout) -> Tensor:
        kept = (answers["positive"][:, 1] >= 0) & (answers["negative"][:, 1] >= 0)
        farness = {name: answers[name][kept, 0] * directions[name] for name in directions}
        cost = _cost(spec, farness["negative"] - farness["positive"])
        return reduce(cost.sum(), kept.sum(), (cost.detach() > 0).sum())

    rounds: tuple[Mapping[str, Statistic], ...] = ({"positive": extreme("positive"), "negative": extreme("negative")},)
    if positive == "semihard":
        rounds = {"negative": extreme("negative")}, {"positive": extreme("positive", "negative")}
    if negative == "semihard":
        rounds = {"positive": extreme("positive")}, {"negative": extreme("negative", "positive")}
    return Formula(rounds, loss)
