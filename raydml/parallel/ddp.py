"""Data parallelism over virtual workers: slices -> embeddings, and cotangents of the embeddings -> gradients."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from raydml.errors import SpecError
from raydml.models import as_input, has_prefix
from raydml.parallel.batch_norm import CollectingBatchNorm, convert_batch_norm
from raydml.parallel.group import Group
from raydml.parallel.randomness import convert_dropout, key, keyed_randomness
from raydml.parallel.reduction import TreeAccumulator, plain_sum, tree_sum
from raydml.spec import JobSpec


class DataParallel:
    """Runs the slices that a worker owns, one after another, each with its own randomness and statistics.

    With synchronised batch norm all own slices go through the model at once, for their layers must meet.
    """

    def __init__(self, model: nn.Module, spec: JobSpec, group: Group, device: torch.device) -> None:
        self.model = model
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._seed, self._group, self._device = spec.seed, group, device
        self._frozen = spec.model.frozen
        self._precision = spec.parallel.precision
        self._norms = convert_batch_norm(model, spec.model.batch_norm, group)
        self._together = spec.model.batch_norm == "synchronised"
        self._bitwise = spec.exactness == "bitwise"
        self._generators: list[torch.Generator] = []
        if self._together:
            convert_dropout(model, self._generators)
        self._graphs: list[Tensor] = []
        self._statistics: list[list[Tensor]] = []
        self._moved: list[CollectingBatchNorm] = []
        self._reduced: list[Tensor] = []
        self._checked = False
        self.train()

    def train(self) -> None:
        """Training mode; frozen parts stay as in evaluation, so that their running statistics stay too."""
        self.model.train()
        for name, module in self.model.named_modules():
            if any(has_prefix(name, prefix) for prefix in self._frozen):
                module.eval()

    def forward(self, inputs: Sequence[Tensor], step: int) -> Tensor:
        """Inputs of the own slices, (S, *input_shape) each -> detached embeddings (own slices x S, dimension).

        Raises SpecError where the model keeps state in its forward that cannot be undone.
        """
        before = self._traces()
        owned = self._group.owned
        self._graphs, self._statistics = [], []
        if self._together:
            self._seed_generators(step)
            self._graphs.append(self._run(torch.cat(list(inputs))))
        else:
            for index, part in zip(owned, inputs, strict=True):
                with keyed_randomness(self._device, self._seed, "model", step, index):
                    self._graphs.append(self._run(part))
        self._check(before)
        return torch.cat([graph.detach() for graph in self._graphs])

    def _run(self, inputs: Tensor) -> Tensor:
        for norm in self._norms:
            norm.start()
        low = self._precision == "bf16"
        kind = torch.float64 if self._precision == "float64" else torch.float32
        with torch.autocast(self._device.type, torch.bfloat16) if low else nullcontext():
            embeddings: Tensor = self.model(as_input(inputs, self._device, kind))
        self._moved = [norm for norm in self._norms for _ in norm.pending]
        self._statistics.append([value for norm in self._norms for pair in norm.pending for value in pair])
        return embeddings.to(kind)

    def pullback(self, cotangents: Tensor) -> list[Tensor]:
        """dL/d(own embeddings), (own slices x S, dimension) -> gradients of `parameters`, summed over all workers."""
        parts = torch.split(cotangents, [graph.shape[0] for graph in self._graphs])
        if self._bitwise:
            accumulator = TreeAccumulator(self._group.num_slices)
            for slot, index in enumerate(self._group.owned):
                gradients = self._gradients(self._graphs[slot : slot + 1], parts[slot : slot + 1])
                accumulator.add(index, [*gradients, *self._statistics[slot]])
            total = tree_sum(accumulator, self._group)
        else:
            total = self._plain(parts)
        self._graphs = []
        count = len(self.parameters)
        self._reduced = total[count:]
        return total[:count]

    def _plain(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """One backward pass through all own slices: autograd sums their gradients."""
        total = self._gradients(self._graphs, parts)
        if self._together:  # the statistics are the same on every worker already
            return [*plain_sum(total, self._group), *self._statistics[0]]
        statistics = [torch.stack(values).sum(0) for values in zip(*self._statistics, strict=True)]
        return plain_sum([*total, *statistics], self._group)

    def _gradients(self, graphs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Tensor]:
        if not self.parameters:
            return []
        typed = [cotangent.to(graph.dtype) for graph, cotangent in zip(graphs, cotangents, strict=True)]
        gradients = torch.autograd.grad(graphs, self.parameters, typed, allow_unused=True)
        pairs = zip(gradients, self.parameters, strict=True)
        return [torch.zeros_like(parameter) if gradient is None else gradient for gradient, parameter in pairs]

    def commit(self) -> None:
        """Move the running statistics: the mean over slices of each slice's statistics."""
        parts = 1 if self._together else self._group.num_slices
        for position, norm in enumerate(self._moved):
            mean, variance = self._reduced[2 * position : 2 * position + 2]
            norm.commit(mean / parts, variance / parts)

    def _seed_generators(self, step: int) -> None:
        seeds = [key(self._seed, "model", step, index) for index in self._group.owned]
        self._generators[:] = [torch.Generator(self._device).manual_seed(seed) for seed in seeds]

    def _traces(self) -> list[Any]:
        if self._checked:
            return []
        random = torch.random.get_rng_state().tolist() if self._together else None
        return [random, *((name, id(value), value._version) for name, value in self.model.named_buffers())]

    def _check(self, before: list[Any]) -> None:
        """Once: a forward may neither move buffers nor, with all slices at once, draw from torch's own generator."""
        after = self._traces()
        if before == after:
            self._checked = True
            return
        if before[0] != after[0]:
            raise SpecError(
                "batch_norm: synchronised allows randomness in nn.Dropout only, and this model draws elsewhere"
            )
        names = [old[0] for old, new in zip(before[1:], after[1:], strict=False) if old != new]
        raise SpecError(
            f"the model's forward changes its buffers {names}: such state cannot be undone, use batch norm or none"
        )
