"""Batch norm over a slice, or over the global batch: statistics are collected, and move only when a step commits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from raydml.errors import SpecError
from raydml.parallel.group import Group


class CollectingBatchNorm(_BatchNorm):
    """Base of both kinds: `pending` holds (mean, unbiased variance) of each forward since the last `start`."""

    pending: list[tuple[Tensor, Tensor]]

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch norm takes at least 2 axes, got {input.dim()}")

    def start(self) -> None:
        """Forget what was collected: an aborted step leaves no trace."""
        self.pending = []

    def commit(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics once, as torch.nn.BatchNorm does for one batch."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        factor = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
        self.running_var.lerp_(variance.to(self.running_var.dtype), factor)


class SliceBatchNorm(CollectingBatchNorm):
    """Normalises over one slice: its statistics are the slice's own, whichever process computes it."""

    def forward(self, input: Tensor) -> Tensor:
        """Shapes as torch.nn.BatchNorm."""
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        mean = torch.zeros(self.num_features, dtype=self.weight.dtype, device=input.device)
        variance = torch.ones_like(mean)
        # With momentum 1 the kernel writes the statistics of this batch where running ones would stand.
        output = functional.batch_norm(input, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
        self.pending.append((mean, variance))
        return output


class SynchronisedBatchNorm(CollectingBatchNorm):
    """Normalises over the global batch, on CPU and GPU; each worker passes all its slices at once."""

    group: Group

    def forward(self, input: Tensor) -> Tensor:
        """Shapes as torch.nn.BatchNorm; the rows of all workers together make the statistics."""
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        output: Tensor
        output, mean, variance = _Synchronised.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, self.eps, self.group
        )
        self.pending.append((mean, variance))
        return output


class _Synchronised(torch.autograd.Function):
    """Batch norm with sums over workers (Ioffe and Szegedy 2015, equations 1-3 and the gradient of section 3)."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, eps: float, group: Group
    ) -> tuple[Tensor, Tensor, Tensor]:
        axes = [0, *range(2, inputs.dim())]
        shape = [1, -1] + [1] * (inputs.dim() - 2)
        wide = inputs.double()
        rows = wide.new_tensor([wide.numel() / wide.shape[1]])
        sums = group.all_reduce(torch.cat([wide.sum(axes), rows]))
        count, mean = sums[-1], sums[:-1] / sums[-1]
        centred = wide - mean.view(shape)
        variance = group.all_reduce((centred * centred).sum(axes)) / count
        scale = (variance + eps).rsqrt()
        normalised = (centred * scale.view(shape)).to(inputs.dtype)
        ctx.save_for_backward(normalised, weight, scale, count)
        ctx.group, ctx.axes, ctx.shape = group, axes, shape
        unbiased = variance * count / (count - 1).clamp(min=1)
        ctx.mark_non_differentiable(mean, unbiased)
        return normalised * weight.view(shape) + bias.view(shape), mean, unbiased

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        normalised, weight, scale, count = ctx.saved_tensors
        gradient = upstream[0]
        wide, seen = gradient.double(), normalised.double()
        bias_gradient, weight_gradient = wide.sum(ctx.axes), (wide * seen).sum(ctx.axes)
        means = ctx.group.all_reduce(torch.cat([bias_gradient, weight_gradient])) / count
        mean, projected = (part.view(ctx.shape) for part in means.chunk(2))
        inner = wide - mean - seen * projected
        inputs = inner * (weight.double() * scale).view(ctx.shape)
        kind = gradient.dtype
        return inputs.to(kind), weight_gradient.to(kind), bias_gradient.to(kind), None, None


def convert_batch_norm(model: nn.Module, kind: str, group: Group) -> list[CollectingBatchNorm]:
    """Turn every batch norm of the model into a collecting one, in place; parameters and names stay.

    Returns them in order of their names. Raises SpecError for a batch norm without weights.
    """
    found: list[CollectingBatchNorm] = []
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        if not module.affine:
            raise SpecError(f"{name}: batch norm without affine weights is not supported, set affine=True")
        # The module itself changes its class: optimisers, hooks and other references to it stay valid.
        module.__class__ = SynchronisedBatchNorm if kind == "synchronised" else SliceBatchNorm
        assert isinstance(module, CollectingBatchNorm)
        module.start()
        if isinstance(module, SynchronisedBatchNorm):
            object.__setattr__(module, "group", group)
        found.append(module)
    return found
