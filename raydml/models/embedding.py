"""Inputs -> embeddings: a backbone, a linear head and optional L2 normalisation."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from raydml.errors import SpecError
from raydml.models.backbones import build_backbone
from raydml.spec import CustomBackbone, Linear, ModelSpec, NgramBag


class EmbeddingModel(nn.Module):
    """`head(backbone(inputs))`, divided by its norm where the spec says so."""

    input_shape: tuple[int, ...] = ()  # of one input, where it was built for them

    def __init__(self, backbone: nn.Module, head: nn.Module, *, normalize: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.normalize = normalize

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, *input_shape) -> (n, dimension)."""
        embeddings: Tensor = self.head(self.backbone(inputs))
        return functional.normalize(embeddings) if self.normalize else embeddings


def as_input(inputs: Tensor, device: torch.device, kind: torch.dtype) -> Tensor:
    """Inputs on the model's device; pixels and vectors in its type, token ids whole as they are."""
    return inputs.to(device, kind) if inputs.is_floating_point() else inputs.to(device)


def build_model(
    spec: ModelSpec, input_shape: tuple[int, ...], seed: int, custom: nn.Module | None = None
) -> EmbeddingModel:
    """The model of the spec with weights drawn from the seed alone (a custom module keeps its own).

    Raises SpecError where the backbone does not fit the inputs or a frozen prefix names nothing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _assemble(spec, input_shape, custom)
    model.input_shape = input_shape
    if spec.batch_norm == "group":
        _use_group_norm(model)
    _freeze(model, spec.frozen)
    return model


def _assemble(spec: ModelSpec, input_shape: tuple[int, ...], custom: nn.Module | None) -> EmbeddingModel:
    if custom is not None:
        if not isinstance(spec.backbone, CustomBackbone):
            raise SpecError(f"a model was handed over, and model.backbone.kind is {spec.backbone.kind}: write custom")
        # A copy: freezing, conversion and training must not reach into the caller's module.
        return EmbeddingModel(copy.deepcopy(custom), nn.Identity(), normalize=spec.normalize)
    backbone = build_backbone(spec.backbone, input_shape)
    # A bias moves all embeddings alike: a learned Mahalanobis metric has none; a bag's small vectors would drown in it.
    head = nn.Linear(backbone.features, spec.dimension, bias=not isinstance(spec.backbone, Linear | NgramBag))
    return EmbeddingModel(backbone, head, normalize=spec.normalize)


def _use_group_norm(module: nn.Module) -> None:
    """Replace every batch norm by a group norm of at most 32 groups of at least 8 channels (Wu and He 2018)."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            channels = child.num_features
            groups = next(n for n in range(max(1, min(32, channels // 8)), 0, -1) if channels % n == 0)
            setattr(module, name, nn.GroupNorm(groups, channels, eps=child.eps))
        else:
            _use_group_norm(child)


def _freeze(model: nn.Module, prefixes: tuple[str, ...]) -> None:
    names = [name for name, _ in model.named_parameters()]
    for prefix in prefixes:
        if not any(has_prefix(name, prefix) for name in names):
            raise SpecError(f"model.frozen: {prefix!r} names no parameter; the first ones are {names[:6]}")
    for name, parameter in model.named_parameters():
        if any(has_prefix(name, prefix) for prefix in prefixes):
            parameter.requires_grad_(False)


def has_prefix(name: str, prefix: str) -> bool:
    """Whether a dotted name is the prefix or lies below it."""
    return name == prefix or name.startswith(prefix + ".")
