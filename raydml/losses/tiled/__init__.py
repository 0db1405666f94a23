"""Losses in tiles: exact over the global batch, each pair of rows computed by one worker, never B x B numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raydml.catalogue import canonical
from raydml.losses.tiled import (
    circle,
    contrastive,
    lifted_structure,
    multi_similarity,
    n_pairs,
    nt_xent,
    proxy_anchor,
    softmax,
    sup_con,
    triplet,
)
from raydml.losses.tiled.all_triplets import TiledTriplets, TripletRule
from raydml.losses.tiled.engine import Formula, TiledLoss, TiledPairs
from raydml.losses.tiled.scores import Score, build_score

__all__ = ["CLASSES", "FORMULAS", "TiledLoss", "tiled_form"]

FORMULAS: dict[str, Callable[[Any, Any, Score], Formula | TripletRule | None]] = {
    "circle": circle.build,
    "contrastive": contrastive.build,
    "generalized_lifted_structure": lifted_structure.build_generalized,
    "lifted_structure": lifted_structure.build,
    "multi_similarity": multi_similarity.build,
    "nt_xent": nt_xent.build,
    "sup_con": sup_con.build,
    "triplet_margin": triplet.build,
}

# Losses that are no function of all pairs of rows: rows against class vectors, or one pair of each class.
CLASSES: dict[str, Callable[[Any, Any], TiledLoss | None]] = {
    "arc_face": softmax.build,
    "cos_face": softmax.build,
    "n_pairs": n_pairs.build,
    "normalized_softmax": softmax.build,
    "proxy_anchor": proxy_anchor.build,
    "proxy_nca": softmax.build_proxy_nca,
}


def tiled_form(spec: Any, loss: Any) -> TiledLoss | None:
    """The tiled form of a loss of pytorch-metric-learning; None where its spec asks for what has none.

    That is a miner or reducer that looks at each pair, a random draw, or a distance that is not symmetric.
    """
    kind = canonical(spec)
    if kind in CLASSES:
        return CLASSES[kind](spec, loss)
    score = build_score(loss.distance) if kind in FORMULAS else None
    formula = None if score is None else FORMULAS[kind](spec, loss, score)
    if score is None or formula is None:
        return None
    return TiledTriplets(formula, score) if isinstance(formula, TripletRule) else TiledPairs(formula, score)
