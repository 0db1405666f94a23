"""An embedding model -> units that run one after another, each on one tensor: what a pipeline is cut between."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from raydml.errors import SpecError
from raydml.models.backbones import MlpBackbone, SmallCnnBackbone
from raydml.models.embedding import EmbeddingModel
from raydml.models.transformers_backbone import PADDING, TransformersBackbone


class Unit(nn.Module):
    """A part of the forward pass and the modules that it uses, which stay where they are in the model."""

    def __init__(self, run: Callable[[Tensor], Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.used = nn.ModuleList(modules)
        self._run = (run,)  # a module by itself would be registered a second time

    def forward(self, inputs: Tensor) -> Tensor:
        """What comes from the unit before -> what goes to the next."""
        return self._run[0](inputs)


def chain(model: EmbeddingModel) -> list[Unit]:
    """The units of a model, each with parameters. Raises SpecError where its layers do not run one after another."""
    backbone = model.backbone
    if isinstance(backbone, MlpBackbone):
        units = [Unit(layer, layer) for layer in backbone]
    elif isinstance(backbone, SmallCnnBackbone):
        units = _small_cnn(backbone)
    elif isinstance(backbone, TransformersBackbone) and type(backbone.model).__name__ in _LIBRARY:
        units = _LIBRARY[type(backbone.model).__name__](backbone)
    elif isinstance(backbone, nn.Sequential) and isinstance(model.head, nn.Identity):  # one's own
        units = [Unit(layer, layer) for layer in backbone]
    else:
        name = type(backbone.model if isinstance(backbone, TransformersBackbone) else backbone).__name__
        raise SpecError(
            f"strategy pipeline cannot cut {name}: it takes mlp, small_cnn, ViTModel, BertModel, or an nn.Sequential "
            f"of your own; choose fsdp"
        )
    last = model.head
    normalize = functional.normalize if model.normalize else (lambda embeddings: embeddings)
    units.append(Unit(lambda features: normalize(last(features)), last))
    return _with_parameters(units)


def _with_parameters(units: list[Unit]) -> list[Unit]:
    """Units without parameters go with the one before, the first ones with the one after."""
    found: list[list[Unit]] = [[]]
    for unit in units:
        has = any(True for _ in unit.parameters())
        if has and any(any(True for _ in member.parameters()) for member in found[-1]):
            found.append([])
        found[-1].append(unit)
    return [members[0] if len(members) == 1 else Unit(nn.Sequential(*members), *members) for members in found]


def _small_cnn(backbone: SmallCnnBackbone) -> list[Unit]:
    stem, norm, dropout = backbone.stem, backbone.norm, backbone.dropout
    first = Unit(lambda pictures: functional.relu(norm(stem(pictures))), stem, norm)
    blocks = [Unit(block, block) for block in backbone.blocks]
    last = Unit(lambda hidden: dropout(torch.cat([hidden.mean((2, 3)), hidden.amax((2, 3))], 1)), dropout)
    return [first, *blocks, last]


def _vit(backbone: TransformersBackbone) -> list[Unit]:
    library = backbone.model
    layers = library.layers if hasattr(library, "layers") else library.encoder.layer
    return [
        Unit(library.embeddings, library.embeddings),
        *(Unit(partial(_plain_layer, layer), layer) for layer in layers),
        _last(backbone, library.layernorm),
    ]


def _bert(backbone: TransformersBackbone) -> list[Unit]:
    """Between its units travel hidden states with a last column that says which tokens are there."""
    library = backbone.model

    def begin(ids: Tensor) -> Tensor:
        present = ids != PADDING
        filler = library.config.pad_token_id
        hidden: Tensor = library.embeddings(input_ids=ids.masked_fill(~present, filler if filler is not None else 0))
        return torch.cat([hidden, present.to(hidden.dtype)[:, :, None]], 2)

    def go_on(layer: nn.Module, states: Tensor) -> Tensor:
        hidden, present = states[:, :, :-1], states[:, :, -1]
        nothing = torch.finfo(hidden.dtype).min
        mask = torch.where(present.bool(), 0.0, nothing).to(hidden.dtype)[:, None, None, :]
        return torch.cat([_first(layer(hidden, mask)), present[:, :, None]], 2)

    def end(states: Tensor) -> Tensor:
        hidden, present = states[:, :, :-1], states[:, :, -1].bool()
        return backbone.pooled(hidden, present)

    pooler = [library.pooler] if library.pooler is not None else []
    layers = library.encoder.layer
    return [
        Unit(begin, library.embeddings),
        *(Unit(partial(go_on, layer), layer) for layer in layers),
        Unit(end, *pooler),
    ]


def _last(backbone: TransformersBackbone, norm: nn.Module) -> Unit:
    pooler = [backbone.model.pooler] if backbone.model.pooler is not None else []
    return Unit(lambda hidden: backbone.pooled(norm(hidden), None), norm, *pooler)


def _plain_layer(layer: nn.Module, hidden: Tensor) -> Tensor:
    return _first(layer(hidden, None))


def _first(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


_LIBRARY: dict[str, Callable[[TransformersBackbone], list[Unit]]] = {"ViTModel": _vit, "BertModel": _bert}
