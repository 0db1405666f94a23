"""What a built model reads, and a refusal where data's preprocessing gives something else."""

from __future__ import annotations

from raydml.data import Preprocessing
from raydml.errors import SpecError
from raydml.models.backbones import NgramBagBackbone
from raydml.models.embedding import EmbeddingModel
from raydml.models.transformers_backbone import TOKENS, TransformersBackbone
from raydml.spec import CustomBackbone, ModelSpec


def check_inputs(spec: ModelSpec, model: EmbeddingModel, preprocessing: Preprocessing) -> None:
    """Raises SpecError where texts meet a model of something else, the reverse, or tokens that the model lacks."""
    if isinstance(spec.backbone, CustomBackbone):
        return
    backbone, rule = model.backbone, preprocessing.text
    if rule is None and reads_tokens(model):
        raise SpecError(
            f"model.backbone: {spec.backbone.kind} takes texts here, and this data has {preprocessing.kind}s"
        )
    if rule is not None and isinstance(backbone, NgramBagBackbone) != (rule.kind == "ngrams"):
        raise SpecError(
            f"model.backbone: {spec.backbone.kind} does not go with data.text.kind {rule.kind}: "
            f"ngram_bag takes ngrams, and a transformers text model takes tokenizer"
        )
    if rule is not None and isinstance(backbone, TransformersBackbone) and rule.num_ids > backbone.vocabulary:
        raise SpecError(
            f"the tokenizer of data.text has {rule.num_ids} tokens, and the model has vectors for "
            f"{backbone.vocabulary}: name the tokenizer that belongs to the model, or set its vocab_size"
        )


def reads_tokens(model: EmbeddingModel) -> bool:
    """Whether its inputs are numbers of tokens or n-grams, int64."""
    return isinstance(model.backbone, NgramBagBackbone) or getattr(model.backbone, "reads", None) == TOKENS
