"""Losses: embeddings and labels of a global batch in, loss and cotangents out."""

from raydml.losses.objective import Objective
from raydml.losses.verdict import Verdict, evaluate_objective

__all__ = ["Objective", "Verdict", "evaluate_objective"]
