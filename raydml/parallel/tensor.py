"""Tensor parallelism: a few workers share each layer, and the data axis the slices; the plan of every backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from raydml.errors import SpecError
from raydml.parallel.ddp import DataParallel
from raydml.parallel.group import Group
from raydml.parallel.holding import Holding
from raydml.parallel.split_layers import Splitter
from raydml.spec import JobSpec

# Layers of a transformer block by name: those that are given the input, and the one that sums up what they made of it.
PAIRS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("q_proj", "k_proj", "v_proj"), "o_proj"),
    (("attention.self.query", "attention.self.key", "attention.self.value"), "attention.output.dense"),
    (("attention.attention.query", "attention.attention.key", "attention.attention.value"), "attention.output.dense"),
    (("fc1",), "fc2"),
    (("intermediate.dense",), "output.dense"),
)


class TensorParallel(DataParallel):
    """Runs slices as `DataParallel` does over the data axis; workers of the tensor axis run the same ones together.

    They start at the same random numbers, so that all draw the masks of one process. A worker alone holds all.
    """

    _kept: bool | None

    def __init__(self, model: nn.Module, spec: JobSpec, group: Group, device: torch.device) -> None:
        peers = group.peers("tensor")
        check_tensor(model, spec)
        splitter = Splitter(model, peers)
        if peers.size > 1:
            split(model, spec, splitter)
        super().__init__(model, spec, group.data, device)
        self._peers, self._kept = peers, None
        self.spread = self._holding = None
        if peers.size > 1:
            self.spread = self._holding = Holding(group, model, splitter.cuts)

    def _keeps(self) -> bool:
        """Whether graphs wait for the pullback: alike for those who run a slice together."""
        if self._kept is None:
            self._kept = not self._peers.vote([not super()._keeps()])[0]
        return self._kept

    def norm(self, gradients: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
        """As in `DataParallel`, with the pieces of all workers."""
        if self._holding is None:
            return super().norm(gradients, weights)
        return self._holding.norm(gradients, weights)


def check_tensor(model: nn.Module, spec: JobSpec) -> None:
    """Raises SpecError for what has no plan, or would draw or normalise in another way in pieces."""
    kind = spec.model.backbone.kind
    if kind not in PLANS:
        raise SpecError(
            f"strategy {spec.parallel.strategy} has no plan to share the layers of the backbone {kind}, only of "
            f"{', '.join(PLANS)}: choose fsdp, or mesh.tensor = 1"
        )
    if spec.model.batch_norm == "synchronised":
        raise SpecError(
            f"batch_norm: synchronised is for workers with whole layers, not for strategy {spec.parallel.strategy}: "
            f"choose per_slice or group"
        )
    if kind == "transformers" and _config(model).to_dict().get("attention_probs_dropout_prob"):
        raise SpecError(
            f"strategy {spec.parallel.strategy} shares the heads of an attention, whose dropout the library draws for "
            f"all heads at once: set model.backbone.config.attention_probs_dropout_prob to 0"
        )


def split(model: nn.Module, spec: JobSpec, splitter: Splitter) -> None:
    """Share the layers of the model out, in place."""
    PLANS[spec.model.backbone.kind](model, splitter)


def _config(model: Any) -> Any:
    return model.backbone.model.config


def _mlp(model: Any, splitter: Splitter) -> None:
    """Layers in pairs, the head among them; what stands between the two of a pair is cut as their features are."""
    chain = [*model.backbone, model.head]
    places = [place for place, layer in enumerate(chain) if isinstance(layer, nn.Linear)]
    for first, second in list(pairwise(places))[::2]:
        splitter.column(chain[first])
        for layer in chain[first + 1 : second]:
            splitter.between(layer)
        splitter.row(chain[second])


def _small_cnn(model: Any, splitter: Splitter) -> None:
    """Both convolutions of a residual block; stem, shortcuts and head are small, and whole on each worker."""
    for block in model.backbone.blocks:
        splitter.column(block.convolution1)
        splitter.between(block.norm1)
        splitter.row(block.convolution2)


def _transformers(model: Any, splitter: Splitter) -> None:
    """Attention by heads, and the two layers after it, of every block whose layers have names that are known."""
    library, heads = model.backbone.model, _config(model).num_attention_heads
    found = 0
    for block in list(library.modules()):
        for columns, row in PAIRS:
            layers = [_below(block, name) for name in (*columns, row)]
            if not all(type(layer) is nn.Linear for layer in layers):
                continue
            for layer in layers[:-1]:
                splitter.column(layer, heads if len(columns) == 3 else None)
            splitter.row(layers[-1])
            found += 1
    if not found:
        raise SpecError(f"there is no plan to share the layers of {type(library).__name__}: choose strategy fsdp")


def _below(module: nn.Module, path: str) -> Any:
    for name in path.split("."):
        found = module._modules.get(name)
        if found is None:
            return None
        module = found
    return module


PLANS: dict[str, Callable[[Any, Splitter], None]] = {
    "mlp": _mlp,
    "small_cnn": _small_cnn,
    "transformers": _transformers,
}
