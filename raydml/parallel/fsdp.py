"""Fully sharded data parallelism (FSDP2): parameters, gradients and moments are shared out over the workers.

A layer is gathered just before it runs and given up after it, in the forward and again in the backward pass; its
gradients are summed over the workers and each keeps its part (ZeRO-3: Rajbhandari et al. 2020; torch's fully_shard).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from raydml.errors import SpecError
from raydml.parallel.ddp import DataParallel, Run
from raydml.parallel.group import Group, talking_in_between
from raydml.parallel.holding import Cut, Held, Holding
from raydml.parallel.memory import Memory
from raydml.parallel.reduction import add, plain_sum
from raydml.spec import JobSpec


class FullySharded(DataParallel):
    """Runs its slices as `DataParallel` does, with the same randomness and statistics, through a model in parts.

    Running the model is a collective, so a worker with fewer slices than another runs its last one again, with
    cotangents of 0. A worker alone holds the whole model.
    """

    def __init__(self, model: nn.Module, spec: JobSpec, group: Group, device: torch.device) -> None:
        _refuse(model, spec)
        super().__init__(model, spec, group, torch.device("cpu") if group.size > 1 else device)
        self._device = device
        self._kept: bool | None = None
        self._idle_runs: list[Run | None] = []  # None: made again in the pullback
        self.in_step = group.size > 1
        if self.in_step:
            _shard(model, spec, group, device)
            self._holding = self.spread = _holding(model, group)
            self.held = self._holding.held
            self.parameters = [value for value in self.held.parameters() if value.requires_grad]
            named: dict[str, Any] = dict(model.named_parameters())
            self._sharded = [named[name] for name, value in self.held.named_parameters() if value.requires_grad]

    @property
    def _idle(self) -> int:
        """Passes of this worker that only keep step with one that has more slices."""
        group = self._group
        if self._together or not self.in_step:
            return 0
        return max(len(group.share(rank)) for rank in range(group.size)) - len(group.owned)

    def forward(self, inputs: Sequence[Tensor], step: int) -> Tensor:
        """As in `DataParallel`."""
        embeddings = super().forward(inputs, step)
        passes = [self._idle_pass() for _ in range(self._idle)]
        self._idle_runs = [run if self._keeps() else None for run in passes]
        return embeddings

    def _idle_pass(self) -> Run:
        return self._slice(len(self._inputs) - 1, self._spec.parallel.precision)

    def _run(self, inputs: Tensor, precision: str) -> Run:
        with talking_in_between() if self.in_step else nullcontext():
            return super()._run(inputs, precision)

    def _keeps(self) -> bool:
        """Whether graphs wait for the pullback: on all workers, or on none, for a second forward is a collective."""
        if not self.in_step:
            return super()._keeps()
        if self._kept is None:
            self._kept = not self._group.vote([not super()._keeps()])[0]
        return self._kept

    def _measured(self, activations: int, inputs: int) -> Memory:
        """A part of everything that lasts, and the largest block whole."""
        whole = super()._measured(activations, inputs)
        shards = self._group.peers(self._group.mesh.axes[-1]).size
        width = 8 if self._spec.parallel.precision == "float64" else 4
        block = max((sum(value.numel() for value in block.parameters()) for block in blocks(self.model)), default=0)
        lasting = 0 if self._spec.parallel.offload else 1
        return replace(
            whole,
            parameters=lasting * whole.parameters // shards + 2 * width * block,
            gradients=lasting * whole.gradients // shards,
            optimizer=lasting * whole.optimizer // shards,
        )

    def pullback(self, cotangents: Tensor) -> list[Tensor]:
        """dL/d(own embeddings), (own slices x S, dimension) -> this worker's part of the gradients, summed over all."""
        if not self.in_step:
            return super().pullback(cotangents)
        parts = torch.split(cotangents, [len(rows) for rows in self._seen])
        statistics: list[Tensor] = []
        for slot, part in enumerate(parts):
            run = self._runs[slot] or self._second_pass(slot)
            self._runs[slot] = None
            self._moved = run.norms
            self._pull(run.embeddings, part)
            statistics = add(statistics, run.statistics) if statistics else run.statistics
        for kept in self._idle_runs:
            run = kept or self._idle_pass()
            self._pull(run.embeddings, torch.zeros_like(run.embeddings))
        # With synchronised batch norm the statistics are the same on every worker already.
        self._reduced = statistics if self._together else plain_sum(statistics, self._group)
        self._idle_runs = []
        self._begin((), self._step)
        return [self._take(sharded, own) for sharded, own in zip(self._sharded, self.parameters, strict=True)]

    def norm(self, gradients: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
        """As in `DataParallel`, with the parts of all workers."""
        return self._holding.norm(gradients, weights) if self.in_step else super().norm(gradients, weights)

    def _pull(self, embeddings: Tensor, cotangents: Tensor) -> None:
        if not self._sharded:
            return
        with talking_in_between():
            torch.autograd.backward([embeddings], [cotangents.to(embeddings.dtype)])

    @staticmethod
    def _take(sharded: Any, own: nn.Parameter) -> Tensor:
        """The gradient that torch has left at a parameter, taken from there; zeros where the loss does not reach it."""
        gradient, sharded.grad = sharded.grad, None
        return torch.zeros_like(own) if gradient is None else gradient.to_local().to(own.dtype)


def _refuse(model: nn.Module, spec: JobSpec) -> None:
    """What cannot be exact, or what torch would refuse later in its own words."""
    scalars = [name for name, value in model.named_parameters() if not value.dim()]
    if scalars:
        raise SpecError(f"strategy fsdp cuts parameters along their first axis, and {scalars[0]} has none: use ddp")
    shared = [name for name, value in model.named_parameters(remove_duplicate=False)]
    if len(shared) > len(list(model.parameters())):
        raise SpecError("strategy fsdp cannot cut a parameter that two modules share: use ddp")
    low = spec.parallel.precision == "bf16"
    if low and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise SpecError(
            "strategy fsdp with precision: bf16 casts all parameters of a layer, and batch norm needs float32: choose "
            "model.batch_norm: group, precision: float32, or strategy ddp"
        )


def _shard(model: nn.Module, spec: JobSpec, group: Group, device: torch.device) -> None:
    """Cut the model in place, one unit of communication for each of its blocks and one for the rest."""
    from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    low = torch.bfloat16 if spec.parallel.precision == "bf16" else None
    wide = torch.float32 if low else None
    options: dict[str, Any] = {
        "mesh": group.device_mesh,
        "reshard_after_forward": True,
        "mp_policy": MixedPrecisionPolicy(param_dtype=low, reduce_dtype=wide),
        "offload_policy": CPUOffloadPolicy(pin_memory=device.type == "cuda")
        if spec.parallel.offload
        else OffloadPolicy(),
    }
    for block in blocks(model):
        fully_shard(block, **options)
    options["mp_policy"] = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=wide, output_dtype=wide)
    fully_shard(model, **options)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Sums, where torch takes means: each worker has its rows of the gradient of one global loss.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost sequences and lists that have parameters: layers that run one after another."""
    for child in model.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from (member for member in child if any(True for _ in member.parameters()))
        else:
            yield from blocks(child)


def _holding(model: nn.Module, group: Group) -> Holding:
    """This worker's parts, as tensors of their own that share the memory of torch's."""
    peers = group.peers(group.mesh.axes[-1])  # data, or the shards of one copy
    tensors: dict[str, Tensor] = dict(model.state_dict())
    cuts: dict[str, Cut] = {}
    for name, value in model.named_parameters():
        local: Tensor = value.detach().to_local()  # type: ignore[attr-defined]
        tensors[name] = nn.Parameter(local, requires_grad=value.requires_grad)
        if peers.size > 1:
            cuts[name] = Cut(peers, 0, value.shape[0])
    return Holding(group, Held(tensors), cuts)
