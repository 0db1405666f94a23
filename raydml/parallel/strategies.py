"""How a model runs over workers, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from raydml.parallel.ddp import DataParallel
from raydml.parallel.feature import FeatureParallel
from raydml.parallel.fsdp import FullySharded
from raydml.parallel.group import Group
from raydml.parallel.pipeline import Pipeline
from raydml.parallel.sharding import Spread
from raydml.parallel.tensor import TensorParallel
from raydml.spec import JobSpec


class Strategy(Protocol):
    """The model's half of a step: a forward whose graph is kept, a pullback through it, a commit.

    `model` runs; `held` has the tensors that lie here, under the names of one process: the model itself where that is
    all of them. `parameters` are the trained ones, in order of the gradients that the pullback gives. `in_step`:
    workers that hold different slices must run the model together, in evaluation too.
    """

    model: nn.Module
    held: nn.Module
    parameters: list[nn.Parameter]
    spread: Spread | None  # None: every worker holds the whole model
    in_step: bool

    def __init__(self, model: nn.Module, spec: JobSpec, group: Group, device: torch.device) -> None: ...
    def train(self) -> None: ...
    def forward(self, inputs: Sequence[Tensor], step: int) -> Tensor: ...
    def forward_in_float32(self, inputs: Sequence[Tensor], step: int) -> Tensor: ...
    def pullback(self, cotangents: Tensor) -> list[Tensor]: ...
    def norm(self, gradients: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor: ...
    def commit(self) -> None: ...


STRATEGIES: dict[str, type[Strategy]] = {
    "ddp": DataParallel,
    "feature": FeatureParallel,
    "fsdp": FullySharded,
    "tensor": TensorParallel,
    "pipeline": Pipeline,
}
