"""Data parallelism over virtual workers: slices -> embeddings, and cotangents of the embeddings -> gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from raydml.errors import SpecError
from raydml.models import as_input, has_prefix
from raydml.parallel.batch_norm import CollectingBatchNorm, convert_batch_norm
from raydml.parallel.compression import Leaf, build_reducer
from raydml.parallel.group import Group
from raydml.parallel.memory import AUTOCAST, Memory, SavedBytes, choose, memory_of, worker_share
from raydml.parallel.randomness import convert_dropout, key, keyed_randomness
from raydml.parallel.sharding import Spread
from raydml.parallel.sums import Pass, SliceSums, Take
from raydml.spec import JobSpec


@dataclass(frozen=True, eq=False)
class Run:
    """One pass through the model: embeddings with their graph, and the statistics of the batch norms it met."""

    embeddings: Tensor
    norms: list[CollectingBatchNorm]
    statistics: list[Tensor]


class DataParallel:
    """Runs the slices that a worker owns, one after another, each with its own randomness and statistics.

    The graphs of all own slices are kept for the pullback; or dropped, and made again there one at a time, from the
    same inputs and the same randomness: the same bits with the activations of one slice (GradCache, Gao et al. 2021).
    The first pass runs with gradients too, so that both passes take the same kernels; its graph goes with its slice.
    With synchronised batch norm all own slices go through the model at once, for their layers must meet.
    """

    spread: Spread | None = None  # each worker holds the whole model
    in_step = False

    def __init__(self, model: nn.Module, spec: JobSpec, group: Group, device: torch.device) -> None:
        self.model = self.held = model.to(device)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._spec, self._group, self._device = spec, group, device
        self._norms = convert_batch_norm(model, spec.model.batch_norm, group)
        self._together = spec.model.batch_norm == "synchronised"
        self._bitwise = spec.exactness != "exact"  # the tree of slices; compressed or not
        self._reducer = build_reducer(spec.parallel.compression, spec.seed, self.parameters, group)
        self.sharded = self._reducer.sharded if self._reducer is not None else {}
        self._sums = SliceSums(self.parameters, group)
        self.sent = 0  # bytes that this worker sent for the gradients of the last step
        self._generators: list[torch.Generator] = []
        if self._together:
            convert_dropout(model, self._generators)
        self._memory: Memory | None = None  # measured by the first slice, where memory is auto
        self._step = 0
        self._inputs: Sequence[Tensor] = ()
        self._seen: list[Tensor] = []  # embeddings of the first pass, a slice each
        self._runs: list[Run | None] = []  # None: made again in the pullback
        self._moved: list[CollectingBatchNorm] = []
        self._alike: list[Tensor] = []  # statistics of all slices at once
        self._reduced: list[Tensor] = []
        self._checked = False
        self.train()

    def train(self) -> None:
        """Training mode; frozen parts stay as in evaluation, so that their running statistics stay too."""
        self.model.train()
        for name, module in self.model.named_modules():
            if any(has_prefix(name, prefix) for prefix in self._spec.model.frozen):
                module.eval()

    def forward(self, inputs: Sequence[Tensor], step: int) -> Tensor:
        """Inputs of the own slices, (S, *input_shape) each -> detached embeddings (own slices x S, dimension).

        Raises SpecError where the model keeps state in its forward that cannot be undone.
        """
        before = self._traces()
        self._begin(inputs, step)
        if self._together:
            self._hold(self._all_slices(self._spec.parallel.precision), kept=True)
        else:
            for slot in range(len(inputs)):
                self._first_pass(slot)
        self._check(before)
        return torch.cat(self._seen)

    @torch.no_grad()
    def forward_in_float32(self, inputs: Sequence[Tensor], step: int) -> Tensor:
        """The embeddings that `forward` would give without autocast; there is nothing to pull back through."""
        self._begin(inputs, step)
        if self._together:
            return self._all_slices("float32").embeddings
        return torch.cat([self._slice(slot, "float32").embeddings for slot in range(len(inputs))])

    def _begin(self, inputs: Sequence[Tensor], step: int) -> None:
        self._inputs, self._step, self._seen, self._runs = inputs, step, [], []

    def _hold(self, run: Run, *, kept: bool) -> None:
        self._seen.append(run.embeddings.detach())
        self._runs.append(run if kept else None)

    def _first_pass(self, slot: int) -> None:
        precision = self._spec.parallel.precision
        if self._spec.parallel.memory == "auto" and self._memory is None:
            saved = SavedBytes(self.model)
            with saved.counting():
                run = self._slice(slot, precision)
            self._memory = self._measured(saved.total, self._inputs[slot].nbytes)
        else:
            run = self._slice(slot, precision)
        self._hold(run, kept=self._keeps())

    def _measured(self, activations: int, inputs: int) -> Memory:
        """What training holds, where the forward of a slice of `inputs` bytes keeps `activations` bytes."""
        return memory_of(self._spec, self.model, activations, inputs)

    def _keeps(self) -> bool:
        """Whether graphs wait for the pullback, with the slices and workers that there are now."""
        if self._memory is None:
            return self._spec.parallel.memory == "keep"
        share = worker_share(self._spec, self._group.size, self._device)
        return choose(self._spec, self._memory, len(self._group.owned), share) == "keep"

    def _second_pass(self, slot: int) -> Run:
        run = self._slice(slot, self._spec.parallel.precision)
        if self._bitwise and not torch.equal(run.embeddings.detach(), self._seen[slot]):
            raise SpecError(
                "the model's forward gives other embeddings when it runs a second time on the same inputs with the "
                "same randomness: it keeps state or changes its inputs in place, choose parallel.memory: keep"
            )
        return run

    def _all_slices(self, precision: str) -> Run:
        self._generators[:] = [
            torch.Generator(self._device).manual_seed(key(self._spec.seed, "model", self._step, index))
            for index in self._group.owned
        ]
        return self._run(torch.cat(list(self._inputs)), precision)

    def _slice(self, slot: int, precision: str) -> Run:
        with keyed_randomness(self._device, self._spec.seed, "model", self._step, self._group.owned[slot]):
            return self._run(self._inputs[slot], precision)

    def _run(self, inputs: Tensor, precision: str) -> Run:
        for norm in self._norms:
            norm.start()
        low = AUTOCAST.get(precision)
        kind = torch.float64 if precision == "float64" else torch.float32
        with torch.autocast(self._device.type, low) if low else nullcontext():
            embeddings: Tensor = self.model(as_input(inputs, self._device, kind))
        met = [norm for norm in self._norms for _ in norm.pending]
        statistics = [value for norm in self._norms for pair in norm.pending for value in pair]
        return Run(embeddings.to(kind), met, statistics)

    def pullback(self, cotangents: Tensor) -> list[Tensor]:
        """dL/d(own embeddings), (own slices x S, dimension) -> gradients of `parameters`, summed over all workers.

        Raises SpecError where a graph that is made again is another one.
        """
        parts = torch.split(cotangents, [len(rows) for rows in self._seen])
        before, count = self._group.sent, len(self.parameters)
        if self._reducer is not None:
            gradients, self._reduced = self._reducer.total(self._leaves(parts))
        else:
            found = self._sums.by_the_tree if self._bitwise else self._sums.plainly
            total = found(self._passes(parts) if self._bitwise or None in self._runs else self._joined(parts))
            gradients, self._reduced = total[:count], total[count:]
        if self._together:  # the statistics are the same on every worker already
            self._reduced = self._alike
        self.sent = self._group.sent - before
        self._begin((), self._step)
        return gradients

    def _passes(self, parts: Sequence[Tensor]) -> Iterator[Pass]:
        """The way back of each own slice, or of all of them in one."""
        for slot, (index, part) in enumerate(zip(self._group.owned, parts, strict=False)):
            run = self._runs[slot] or self._second_pass(slot)
            self._moved, self._alike = run.norms, run.statistics
            yield Pass(index, partial(self._backward, [run], [part]), () if self._together else run.statistics)

    def _joined(self, parts: Sequence[Tensor]) -> Iterator[Pass]:
        """The way back of all own slices at once: autograd sums their gradients, which are copied out only then."""
        runs = [run for run in self._runs if run is not None]
        self._moved, self._alike = runs[0].norms, runs[0].statistics
        counts = {len(run.statistics) for run in runs}
        if len(counts) > 1:
            raise SpecError(f"slices meet {sorted(counts)} batch norms: the forward must take the same layers for each")
        rest = [torch.stack(values).sum(0) for values in zip(*(run.statistics for run in runs), strict=True)]
        yield Pass(self._group.owned[0], partial(self._backward, runs, parts), () if self._together else rest)

    def _leaves(self, parts: Sequence[Tensor]) -> Iterator[Leaf]:
        """Gradients and statistics of each own slice."""
        for given in self._passes(parts):
            found: dict[int, Tensor] = {}
            given.run(found.__setitem__)
            gradients = [
                found[place] if place in found else torch.zeros_like(parameter)
                for place, parameter in enumerate(self.parameters)
            ]
            yield given.index, gradients, list(given.rest)

    def _backward(self, runs: Sequence[Run], cotangents: Sequence[Tensor], take: Take) -> None:
        """The gradient of each parameter is taken as soon as all of it is there."""
        if not self.parameters:
            return

        def hand_over(place: int, parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None
            take(place, gradient)

        hooks = [
            parameter.register_post_accumulate_grad_hook(partial(hand_over, place))  # type: ignore[no-untyped-call]
            for place, parameter in enumerate(self.parameters)
        ]
        try:
            given = [part.to(run.embeddings.dtype) for run, part in zip(runs, cotangents, strict=True)]
            torch.autograd.backward([run.embeddings for run in runs], given, inputs=self.parameters)
        finally:
            for hook in hooks:
                hook.remove()

    def norm(self, gradients: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
        """L2 norm, shape (), of all gradients of the model and of the loss's own weights."""
        return nn.utils.get_total_norm([*gradients, *weights])

    def commit(self) -> None:
        """Move the running statistics: the mean over slices of each slice's; remember what compression left out."""
        if self._reducer is not None:
            self._reducer.commit()
        parts = 1 if self._together else self._group.num_slices
        for position, norm in enumerate(self._moved):
            mean, variance = self._reduced[2 * position : 2 * position + 2]
            norm.commit(mean / parts, variance / parts)

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
