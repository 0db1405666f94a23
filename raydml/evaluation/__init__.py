"""Embeddings and labels -> exact metrics, streamed over tiles."""

from raydml.evaluation.baseline import baseline
from raydml.evaluation.retrieval import retrieval, summarise

__all__ = ["baseline", "retrieval", "summarise"]
