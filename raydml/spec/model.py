"""Inputs -> embeddings: the backbone and the head."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from raydml.catalogue import PLUGIN
from raydml.spec.base import Frozen


class SmallCnn(Frozen):
    """A residual convolutional network of about 0.7 M parameters for small images."""

    kind: Literal["small_cnn"] = "small_cnn"
    # With channels that 8 does not divide, oneDNN in torch 2.13 writes past its buffers on some processors.
    width: int = Field(32, ge=16, le=512, multiple_of=16, description="channels of the first convolution")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the embedding head")


class Mlp(Frozen):
    """Fully connected layers over the flattened input."""

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = Field(
        (256, 256), description="widths of the hidden layers"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout after each hidden layer")
    batch_norm: bool = Field(True, description="batch norm after each hidden layer")


class Linear(Frozen):
    """One linear map of the flattened input: a learned Mahalanobis metric, D(x, y)^2 = |L(x - y)|^2."""

    kind: Literal["linear"] = "linear"


class CustomBackbone(Frozen):
    """A torch module handed to `raydml.train(spec, model=...)`, or one that an installed plug-in makes.

    It maps inputs to (batch, dimension).
    """

    kind: Literal["custom"] = "custom"
    plugin: str | None = Field(
        None, pattern=PLUGIN, description="its entry point in raydml.plugins.models; None: one is handed over"
    )


class NgramBag(Frozen):
    """The mean of learned vectors of a text's hashed n-grams (Joulin et al. 2017)."""

    kind: Literal["ngram_bag"] = "ngram_bag"
    buckets: int = Field(16384, ge=16, le=1 << 24, description="vectors; an n-gram's hash modulo this chooses one")
    width: int = Field(128, ge=1, le=65536, description="length of a vector")


class TransformersSpec(Frozen):
    """A vision or text model of the `transformers` library; nothing is ever downloaded."""

    kind: Literal["transformers"] = "transformers"
    architecture: str | None = Field(
        None,
        pattern=r"^[A-Z][A-Za-z0-9]{0,99}$",
        description="class name, such as ResNetModel, ViTModel or BertModel; None: the one that the folder names",
    )
    config: dict[str, Any] = Field(
        default_factory=dict, description="options of its configuration that differ from the library's or the folder's"
    )
    path: str | None = Field(
        None, min_length=1, description="local folder with config.json and safetensors; None: fresh weights"
    )
    pooling: Literal["mean", "cls", "pooler"] = Field(
        "mean", description="features: mean over positions (padding left out), the first position, or its own pooler"
    )

    @field_validator("config")
    @classmethod
    def _config_is_json(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"cannot be written as JSON: {error}") from error
        return value

    @model_validator(mode="after")
    def _something_names_it(self) -> Self:
        if self.architecture is None and self.path is None:
            raise ValueError("transformers needs an architecture, such as ViTModel, or the path of a local folder")
        return self


BackboneSpec = Annotated[
    SmallCnn | Mlp | Linear | NgramBag | TransformersSpec | CustomBackbone, Field(discriminator="kind")
]


class CardSpec(Frozen):
    """What a person says of the model in its card, the README.md of the model folder."""

    licence: str = Field("unknown", pattern=r"^[^\r\n]{1,200}$", description="of the weights, e.g. apache-2.0")
    description: str = Field("", max_length=10_000, description="what the model is")
    intended_use: str = Field("", max_length=10_000, description="what it is for, and what it is not for")


class ModelSpec(Frozen):
    """Inputs -> embeddings."""

    backbone: BackboneSpec = Field(default_factory=SmallCnn)
    dimension: int = Field(128, ge=1, le=65536, description="length of an embedding")
    normalize: bool = Field(True, description="divide embeddings by their L2 norm")
    batch_norm: Literal["per_slice", "synchronised", "group"] = Field(
        "per_slice", description="statistics over a slice (bitwise), over the global batch (exact), or group norm"
    )
    frozen: tuple[str, ...] = Field((), description="parts that do not train: prefixes of parameter names")
    card: CardSpec | None = Field(None, description="licence and words for the model card")
