"""Backbones: a batch of inputs -> a batch of features, built from the spec."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from raydml.errors import SpecError
from raydml.models.transformers_backbone import TransformersBackbone
from raydml.spec import BackboneSpec, CustomBackbone, Linear, Mlp, NgramBag, SmallCnn, TransformersSpec


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions that halve the resolution, added to a strided 1 x 1 convolution."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.convolution1 = nn.Conv2d(channels_in, channels_out, 3, 2, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.convolution2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, 2, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, in, h, w) -> (n, out, h / 2, w / 2)."""
        hidden = functional.relu(self.norm1(self.convolution1(inputs)))
        return functional.relu(self.norm2(self.convolution2(hidden)) + self.shortcut(inputs))


class SmallCnnBackbone(nn.Module):
    """A stem and three residual blocks; mean and maximum over the image are the features."""

    def __init__(self, spec: SmallCnn, channels: int) -> None:
        super().__init__()
        width = spec.width
        widths = (width, width * 3 // 2, width * 3, width * 6)
        self.stem = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(*(ResidualBlock(a, b) for a, b in pairwise(widths)))
        self.dropout = nn.Dropout(spec.dropout)
        self.features = 2 * widths[-1]

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, features)."""
        hidden = self.blocks(functional.relu(self.norm(self.stem(inputs))))
        pooled = torch.cat([hidden.mean((2, 3)), hidden.amax((2, 3))], 1)
        dropped: Tensor = self.dropout(pooled)
        return dropped


class MlpBackbone(nn.Sequential):
    """Fully connected layers with optional batch norm and dropout."""

    def __init__(self, spec: Mlp, inputs: int) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for width in spec.hidden:
            layers.append(nn.Linear(inputs, width, bias=not spec.batch_norm))
            if spec.batch_norm:
                layers.append(nn.BatchNorm1d(width))
            layers += [nn.ReLU(), nn.Dropout(spec.dropout)]
            inputs = width
        super().__init__(*layers)
        self.features = inputs


class LinearBackbone(nn.Flatten):
    """The flattened input itself: with the head it is one linear map."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.features = inputs


class NgramBagBackbone(nn.Module):
    """The mean of one vector per hashed n-gram (fastText: Joulin et al. 2017)."""

    def __init__(self, spec: NgramBag) -> None:
        super().__init__()
        self.buckets = spec.buckets
        self.vectors = nn.EmbeddingBag(spec.buckets + 1, spec.width, mode="mean", padding_idx=0)
        with torch.no_grad():  # at torch's unit variance Adam's steps would take ten times as long to matter
            self.vectors.weight *= 0.1
        self.features = spec.width

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, length) hashes, -1 for padding -> (n, features); hash h has vector 1 + h mod buckets."""
        places = torch.where(inputs < 0, 0, inputs % self.buckets + 1)
        vectors: Tensor = self.vectors(places)
        return vectors


Backbone = SmallCnnBackbone | MlpBackbone | LinearBackbone | NgramBagBackbone | TransformersBackbone


def build_backbone(spec: BackboneSpec, input_shape: tuple[int, ...]) -> Backbone:
    """The backbone of the spec for inputs of one shape; `.features` is the width of what it returns."""
    if isinstance(spec, CustomBackbone):
        raise SpecError("model.backbone.kind: custom needs raydml.train(spec, model=<torch module>) from Python")
    if isinstance(spec, SmallCnn):
        if len(input_shape) != 3:
            raise SpecError(
                f"small_cnn takes images, and this data has inputs of shape {input_shape}: use mlp or linear "
                f"(ngram_bag for texts)"
            )
        return SmallCnnBackbone(spec, input_shape[0])
    if isinstance(spec, NgramBag):
        if len(input_shape) != 1:
            raise SpecError(f"ngram_bag takes texts, and this data has inputs of shape {input_shape}")
        return NgramBagBackbone(spec)
    if isinstance(spec, TransformersSpec):
        return TransformersBackbone(spec, input_shape)
    if isinstance(spec, Linear):
        return LinearBackbone(math.prod(input_shape))
    return MlpBackbone(spec, math.prod(input_shape))
