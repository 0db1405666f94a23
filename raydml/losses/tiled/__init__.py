"""Losses in tiles: exact over the global batch, each worker with its own rows, never B x B numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raydml.catalogue import canonical
from raydml.losses.tiled import circle, contrastive, lifted_structure, multi_similarity, nt_xent, sup_con, triplet
from raydml.losses.tiled.engine import Formula, evaluate_pairs
from raydml.losses.tiled.scores import Score, build_score

__all__ = ["FORMULAS", "Formula", "Score", "build_score", "evaluate_pairs", "formula_of"]

FORMULAS: dict[str, Callable[[Any, Any, bool], Formula | None]] = {
    "circle": circle.build,
    "contrastive": contrastive.build,
    "generalized_lifted_structure": lifted_structure.build_generalized,
    "lifted_structure": lifted_structure.build,
    "multi_similarity": multi_similarity.build,
    "nt_xent": nt_xent.build,
    "sup_con": sup_con.build,
    "triplet_margin": triplet.build,
}


def formula_of(spec: Any, loss: Any, similar: bool) -> Formula | None:
    """The tiled form of a loss; None where its spec asks for what has none (another miner, a random draw)."""
    build = FORMULAS.get(canonical(spec))
    return None if build is None else build(spec, loss, similar)
