"""Layers in pieces: the first of a pair computes some of its output features, the second sums over them.

Between the two every worker of the tensor axis holds its own features; one sum over the workers per pair in the
forward, one in the backward pass (Shoeybi et al. 2019). Names and order of parameters stay, so does the arithmetic.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from raydml.errors import SpecError
from raydml.parallel.group import Peers
from raydml.parallel.holding import Cut


class _Given(torch.autograd.Function):
    """The same input to all workers: their gradients of it are summed."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, peers: Peers) -> Tensor:
        ctx.peers = peers
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return ctx.peers.all_reduce(upstream[0].clone(memory_format=torch.contiguous_format)), None


class _Summed(torch.autograd.Function):
    """The sum of all workers' outputs, on each: all have its gradient already."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, peers: Peers) -> Tensor:
        return peers.all_reduce(outputs.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return upstream[0], None


class Piece:
    """Of a layer that changed its class: the workers that hold its other pieces."""

    peers: Peers


class ColumnLinear(Piece, nn.Linear):
    """Some of the output features, of the whole input."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out / T)."""
        return functional.linear(_given(input, self.peers), self.weight, self.bias)


class RowLinear(Piece, nn.Linear):
    """The whole output, of some of the input features on each worker."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in / T) -> (..., out)."""
        outputs = _summed(functional.linear(input, self.weight), self.peers)
        return outputs if self.bias is None else outputs + self.bias


class ColumnConvolution(Piece, nn.Conv2d):
    """Some of the output channels, of the whole input."""

    def forward(self, input: Tensor) -> Tensor:
        """(n, in, h, w) -> (n, out / T, h', w')."""
        return super().forward(_given(input, self.peers))


class RowConvolution(Piece, nn.Conv2d):
    """The whole output, of some of the input channels on each worker; without a bias."""

    def forward(self, input: Tensor) -> Tensor:
        """(n, in / T, h, w) -> (n, out, h', w')."""
        return _summed(super().forward(input), self.peers)


class SplitDropout(Piece, nn.Dropout):
    """Dropout of some features: its mask is cut out of the one that a worker with all of them would draw."""

    def forward(self, input: Tensor) -> Tensor:
        """(n, features / T), as it came."""
        if not self.training or not self.p:
            return input
        size = input.shape[-1]
        whole = input.new_ones(*input.shape[:-1], size * self.peers.size)
        mask = functional.dropout(whole, self.p)
        return input * mask.narrow(-1, size * self.peers.rank, size)


def _given(inputs: Tensor, peers: Peers) -> Tensor:
    given: Tensor = _Given.apply(inputs, peers)  # type: ignore[no-untyped-call]
    return given


def _summed(outputs: Tensor, peers: Peers) -> Tensor:
    summed: Tensor = _Summed.apply(outputs, peers)  # type: ignore[no-untyped-call]
    return summed


class Splitter:
    """Turns layers of a model into pieces, in place, and remembers how each tensor was cut."""

    def __init__(self, model: nn.Module, peers: Peers) -> None:
        self.cuts: dict[str, Cut] = {}
        self._peers = peers
        self._names = {module: name for name, module in model.named_modules()}

    def column(self, layer: nn.Module, parts: int | None = None) -> None:
        """Keep some output features; `parts` is the number of wholes that they must not be cut through (heads)."""
        kind = ColumnConvolution if isinstance(layer, nn.Conv2d) else ColumnLinear
        attribute = "out_channels" if isinstance(layer, nn.Conv2d) else "out_features"
        self._check(layer, parts or getattr(layer, attribute))
        self._turn(layer, kind, {"weight": 0, "bias": 0}, attribute)

    def row(self, layer: nn.Module) -> None:
        """Keep the weights of some input features; the bias stays whole."""
        kind = RowConvolution if isinstance(layer, nn.Conv2d) else RowLinear
        attribute = "in_channels" if isinstance(layer, nn.Conv2d) else "in_features"
        self._check(layer, getattr(layer, attribute))
        self._turn(layer, kind, {"weight": 1}, attribute)

    def between(self, layer: nn.Module) -> None:
        """Keep what belongs to the features that lie here: of norms over single features, of groups, of dropout."""
        if isinstance(layer, _BatchNorm):
            self._check(layer, layer.num_features)
            self._turn(layer, type(layer), dict.fromkeys(("weight", "bias", "running_mean", "running_var"), 0))
            layer.num_features //= self._peers.size
        elif isinstance(layer, nn.GroupNorm):
            self._check(layer, layer.num_groups)
            self._turn(layer, type(layer), {"weight": 0, "bias": 0}, "num_channels")
            layer.num_groups //= self._peers.size
        elif isinstance(layer, nn.Dropout):
            self._turn(layer, SplitDropout, {})

    def _check(self, layer: nn.Module, parts: int) -> None:
        if parts % self._peers.size:
            raise SpecError(
                f"parallel.mesh.tensor = {self._peers.size} workers cannot share {self._names[layer]} equally: it has "
                f"{parts} {'groups' if isinstance(layer, nn.GroupNorm) else 'features or heads'}"
            )

    @torch.no_grad()
    def _turn(self, layer: nn.Module, kind: type, dims: dict[str, int], attribute: str | None = None) -> None:
        for name, dim in dims.items():
            whole = getattr(layer, name, None)
            if whole is None:
                continue
            cut = Cut(self._peers, dim, whole.shape[dim])
            piece = cut.piece(whole).clone()
            if isinstance(whole, nn.Parameter):
                piece = nn.Parameter(piece, requires_grad=whole.requires_grad)
            setattr(layer, name, piece)
            self.cuts[f"{self._names[layer]}.{name}"] = cut
        if attribute is not None:
            setattr(layer, attribute, getattr(layer, attribute) // self._peers.size)
        layer.__class__ = kind
        object.__setattr__(layer, "peers", self._peers)
