"""Pipeline parallelism in two phases: embeddings first, the objective on the whole batch, then torch's schedule.

A loss per micro-batch would be another loss. So the stages run forward once to give the embeddings, and again within
the schedule, whose loss is <embeddings, cotangents>. A micro-batch is a slice: it keeps its statistics, and its random
numbers travel from stage to stage with it, so that dropout is that of one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from raydml.errors import SpecError
from raydml.models import EmbeddingModel, as_input, chain, has_prefix, reads_tokens
from raydml.parallel.ddp import DataParallel
from raydml.parallel.group import Group, Peers, talking, talking_in_between
from raydml.parallel.holding import Held, Holding
from raydml.parallel.memory import AUTOCAST
from raydml.parallel.randomness import keyed_randomness
from raydml.parallel.reduction import add, plain_sum
from raydml.parallel.split_layers import Splitter
from raydml.parallel.stages import sizes_of_stages
from raydml.parallel.tensor import check_tensor, split
from raydml.spec import JobSpec

SCHEDULES = {
    "gpipe": "ScheduleGPipe",
    "one_f_one_b": "Schedule1F1B",
    "interleaved": "ScheduleInterleaved1F1B",
    "zero_bubble": "ScheduleInterleavedZeroBubble",
}


class Stage(nn.Sequential):
    """Units one after another; what leaves it lies in one piece of memory, as sending asks for."""

    def forward(self, input: Tensor) -> Tensor:
        """What comes from the stage before -> what goes to the next."""
        for unit in self:
            input = unit(input)
        return input.contiguous()


class StagedModel(nn.Module):
    """The stages of this worker; run by all workers of a pipeline together, it gives the embeddings to each."""

    def __init__(self, stages: Mapping[int, nn.Module], count: int, peers: Peers, dimension: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages.values())
        self.own = dict(zip(stages, self.stages, strict=True))  # by number: worker r has r, r + P, r + 2 P, ...
        self.count, self.peers, self.dimension = count, peers, dimension

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, *input_shape) -> (n, dimension)."""
        return self.relay([inputs], self._plainly)[0]

    def relay(self, parts: Sequence[Tensor], run: Callable[[int, int, Tensor, Tensor | None], Any]) -> list[Tensor]:
        """Take each part of the inputs through all stages; `run(stage, part, inputs, word)` gives output and word.

        A word travels with each part from stage to stage. All workers get the embeddings.
        """
        works, found = [], []
        last, size = (self.count - 1) % self.peers.size, self.peers.size
        for number, part in enumerate(parts):
            for stage in self.own:
                word = None
                if stage:
                    source = (stage - 1) % size
                    part, word = self.peers.take(source), self.peers.take(source)
                output, word = run(stage, number, part, word)
                if stage < self.count - 1:
                    to = (stage + 1) % size
                    works += [*self.peers.give(output, to), *self.peers.give(word, to)]
                else:
                    found.append(output)
        with talking():
            for work in works:
                work.wait()
        kind = next(self.parameters()).dtype
        rows = [len(part) for part in parts]
        whole = torch.cat(found).to(kind) if found else torch.empty(sum(rows), self.dimension, dtype=kind)
        return list(torch.split(self.peers.share_out(whole.to(self.peers.device).contiguous(), last), rows))

    def _plainly(self, stage: int, number: int, inputs: Tensor, word: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.own[stage](inputs), torch.zeros(1, dtype=torch.uint8)


class Pipeline(DataParallel):
    """Stages of layers on the workers of the pipeline axis, whose layers the tensor axis may share; slices over data.

    The number of micro-batches is rounded up to a multiple of the workers of the pipeline: idle ones repeat the last
    slice with cotangents of 0. A worker alone holds all.
    """

    def __init__(self, model: nn.Module, spec: JobSpec, group: Group, device: torch.device) -> None:
        assert isinstance(model, EmbeddingModel)
        if spec.model.batch_norm == "synchronised":
            raise SpecError(
                "batch_norm: synchronised needs all slices in a layer at once, and strategy pipeline runs them one "
                "after another: choose per_slice or group"
            )
        if spec.parallel.mesh.tensor > 1:
            check_tensor(model, spec)
        peers = group.peers("pipeline")
        units = chain(model)
        self._staged = peers.size > 1
        if not self._staged:
            super().__init__(model, spec, group.data, device)
            return
        self._skeleton, self._peers = model, peers
        count = peers.size * spec.parallel.pipeline.stages
        sizes = sizes_of_stages(units, count, spec.parallel.pipeline.split, example_of(model))
        splitter = Splitter(model, group.peers("tensor"))
        if group.mesh.length("tensor") > 1:
            split(model, spec, splitter)
        names = _names(model)
        ends = [sum(sizes[: stage + 1]) for stage in range(count)]
        own = range(peers.rank, count, peers.size)
        stages = {stage: Stage(*units[ends[stage] - sizes[stage] : ends[stage]]) for stage in own}
        staged = StagedModel(stages, count, peers, spec.model.dimension)
        own_names = {place: names[id(value)] for place, value in staged.state_dict(keep_vars=True).items()}
        _forget(model, staged)
        super().__init__(staged, spec, group.data, device)
        self.held = Held({own_names[place]: value for place, value in staged.state_dict(keep_vars=True).items()})
        cuts = {name: cut for name, cut in splitter.cuts.items() if name in own_names.values()}
        self.spread = self._holding = Holding(group, self.held, cuts, peers, names.values())
        self.parameters = [value for value in self.held.parameters() if value.requires_grad]
        self._states: dict[tuple[int, int], Tensor] = {}  # random numbers where a stage began a slice
        self._shapes: dict[int, tuple[Tensor, Tensor]] = {}  # inputs and outputs of a stage, without numbers
        self._statistics: list[list[Tensor]] = []
        self._schedule: Any = None
        self._parts: list[Tensor] = []

    def train(self) -> None:
        """As in `DataParallel`, by the names of one process."""
        if not self._staged:
            super().train()
            return
        self.model.train()
        for name, module in self._skeleton.named_modules():
            if any(has_prefix(name, prefix) for prefix in self._spec.model.frozen):
                module.eval()

    @torch.no_grad()
    def forward(self, inputs: Sequence[Tensor], step: int) -> Tensor:
        """Inputs of the own slices, (S, *input_shape) each -> detached embeddings (own slices x S, dimension)."""
        if not self._staged:
            with torch.enable_grad():
                return super().forward(inputs, step)
        self._step = step
        kind = torch.float64 if self._spec.parallel.precision == "float64" else torch.float32
        idle = -len(inputs) % self._peers.size
        self._parts = [as_input(part, self._device, kind) for part in (*inputs, *[inputs[-1]] * idle)]
        self._moved, self._states, self._statistics = [], {}, [[] for _ in self._parts]
        assert isinstance(self.model, StagedModel)
        self._seen = self.model.relay(self._parts, self._first_run)[: len(inputs)]
        return torch.cat(self._seen)

    def _first_run(self, stage: int, number: int, inputs: Tensor, word: Tensor | None) -> tuple[Tensor, Tensor]:
        """Of one slice in one stage: remembers where its randomness began, and its statistics."""
        assert isinstance(self.model, StagedModel)
        index = self._group.owned[min(number, len(self._group.owned) - 1)]
        inputs = inputs.to(self._device)
        with keyed_randomness(self._device, self._spec.seed, "model", self._step, index):
            if word is not None:
                _set_random_state(word.cpu(), self._device)
            self._states[stage, number] = _random_state(self._device)
            for norm in self._norms:
                norm.start()
            with self._low():
                output: Tensor = self.model.own[stage](inputs)
            after = _random_state(self._device)
        if number == 0:
            self._moved += [norm for norm in self._norms for _ in norm.pending]
        self._statistics[number] += [value for norm in self._norms for pair in norm.pending for value in pair]
        self._shapes[stage] = (torch.empty_like(inputs), torch.empty_like(output))
        return output, after

    def _low(self) -> Any:
        low = AUTOCAST.get(self._spec.parallel.precision)
        return torch.autocast(self._device.type, low) if low else nullcontext()

    def pullback(self, cotangents: Tensor) -> list[Tensor]:
        """dL/d(own embeddings), (own slices x S, dimension) -> gradients of the own stages, summed over the data."""
        if not self._staged:
            return super().pullback(cotangents)
        missing = sum(map(len, self._parts)) - len(cotangents)
        target = torch.cat([cotangents, cotangents.new_zeros(missing, cotangents.shape[1])])
        if self._schedule is None:
            self._schedule = self._build()
        own: Any = self.model.own
        first, last = 0 in own, self.model.count - 1 in own  # type: ignore[operator]
        devices = [self._device] if self._device.type == "cuda" else []
        with talking_in_between(), torch.random.fork_rng(devices=devices):
            self._schedule.step(
                *([torch.cat(self._parts)] if first else []),
                **({"target": target, "losses": []} if last else {}),
                return_outputs=False,
            )
        gradients = [_taken(value) for value in self.parameters]
        statistics = self._statistics[0]
        for more in self._statistics[1 : len(self._seen)]:
            statistics = add(statistics, more)
        total = plain_sum([*gradients, *statistics], self._group)
        self._parts, self._seen = [], []
        self._reduced = total[len(gradients) :]
        return total[: len(gradients)]

    def _build(self) -> Any:
        """Torch's schedule for the slices that this pipeline has now."""
        from torch.distributed.pipelining import PipelineStage, schedules

        strategy = self

        class KeyedStage(PipelineStage):
            """Runs each micro-batch with the randomness that it had in the first phase."""

            def forward_one_chunk(self, fwd_chunk_id: int, *values: Any, **options: Any) -> Any:
                with strategy._again(self.stage_index, fwd_chunk_id):
                    return super().forward_one_chunk(fwd_chunk_id, *values, **options)

        assert isinstance(self.model, StagedModel)
        stages = []
        for number, module in self.model.own.items():
            inputs, outputs = self._shapes[number]
            inputs = inputs.requires_grad_(number > 0 and inputs.is_floating_point())
            stage = KeyedStage(
                module,
                number,
                self.model.count,
                self._device,
                input_args=inputs,
                output_args=outputs.requires_grad_(),
                group=self._peers.processes,
            )
            stages.append(stage)
        kind = getattr(schedules, SCHEDULES[self._spec.parallel.pipeline.schedule])
        single = issubclass(kind, schedules.PipelineScheduleSingle)
        return kind(stages[0] if single else stages, len(self._parts), loss_fn=_surrogate, scale_grads=False)

    @contextmanager
    def _again(self, stage: int, number: int) -> Iterator[None]:
        for norm in self._norms:
            norm.start()
        _set_random_state(self._states[stage, number], self._device)
        with self._low():
            yield

    def norm(self, gradients: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
        """As in `DataParallel`, with the stages of all workers."""
        return self._holding.norm(gradients, weights) if self._staged else super().norm(gradients, weights)


def _surrogate(embeddings: Tensor, cotangents: Tensor) -> Tensor:
    """Whose gradient by the embeddings is the cotangents."""
    return (embeddings * cotangents).sum()


def _taken(parameter: nn.Parameter) -> Tensor:
    gradient, parameter.grad = parameter.grad, None
    return torch.zeros_like(parameter) if gradient is None else gradient


def _random_state(device: torch.device) -> Tensor:
    """Of torch's generators of the CPU and of the device, one after the other, (bytes,)."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


def _set_random_state(state: Tensor, device: torch.device) -> None:
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[size:], device)


def example_of(model: EmbeddingModel) -> Tensor:
    """One row of zeros."""
    kind = next(model.parameters()).dtype
    return torch.zeros(1, *model.input_shape, dtype=torch.int64 if reads_tokens(model) else kind)


def _names(model: nn.Module) -> dict[int, str]:
    """Names of a model's tensors by the tensor."""
    return {id(value): name for name, value in model.state_dict(keep_vars=True).items()}


def _forget(model: nn.Module, kept: nn.Module) -> None:
    """Free the tensors of all modules but those below `kept`; their shapes stay."""
    own = {id(module) for module in kept.modules()}
    for module in model.modules():
        if id(module) in own:
            continue
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(value.detach().to("meta"), requires_grad=value.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to("meta")
