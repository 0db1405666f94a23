"""Losses: embeddings and labels of a global batch in, loss and cotangents out."""

from raydml.losses.heads import ClassHead, HeadStep, Home
from raydml.losses.objective import Objective
from raydml.losses.verdict import Verdict, evaluate_objective

__all__ = ["ClassHead", "HeadStep", "Home", "Objective", "Verdict", "evaluate_objective"]
