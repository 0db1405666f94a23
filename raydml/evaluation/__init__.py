"""Embeddings and labels -> exact metrics, streamed over tiles."""

from raydml.evaluation.baseline import baseline
from raydml.evaluation.retrieval import QUERY_BLOCK, retrieval, summarise

__all__ = ["QUERY_BLOCK", "baseline", "retrieval", "summarise"]
