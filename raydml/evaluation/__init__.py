"""Embeddings and labels -> exact metrics, streamed over tiles."""

from raydml.evaluation.baseline import baseline
from raydml.evaluation.intervals import intervals
from raydml.evaluation.retrieval import retrieval, summarise

__all__ = ["baseline", "intervals", "retrieval", "summarise"]
