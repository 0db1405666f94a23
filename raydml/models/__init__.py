"""Inputs -> embeddings: backbones, the embedding head, and trained models as folders."""

from raydml.models.chain import Unit, chain
from raydml.models.embedding import EmbeddingModel, as_input, build_model, has_prefix
from raydml.models.exported import Embedder, embed_tensors, load_model, save_model
from raydml.models.inputs import check_inputs, reads_tokens

__all__ = [
    "Embedder",
    "EmbeddingModel",
    "Unit",
    "as_input",
    "build_model",
    "chain",
    "check_inputs",
    "embed_tensors",
    "has_prefix",
    "load_model",
    "reads_tokens",
    "save_model",
]
