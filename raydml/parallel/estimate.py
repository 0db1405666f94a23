"""A model and a number of workers in; what a step of each strategy would hold, send and compute out, and the choice.

Formulas and their check against counted bytes: docs/scaling.md. Figures are of the fullest worker and one step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from raydml.errors import SpecError
from raydml.models import EmbeddingModel, chain
from raydml.parallel.class_vectors import HeadShare, head_share
from raydml.parallel.fsdp import blocks
from raydml.parallel.group import Peers
from raydml.parallel.measured import Measured, Trial
from raydml.parallel.memory import Memory, kept_by_forward, memory_of, worker_share
from raydml.parallel.pipeline import example_of
from raydml.parallel.randomness import STATE_BYTES
from raydml.parallel.split_layers import Splitter
from raydml.parallel.stages import costs_of, sizes_of_stages
from raydml.parallel.tensor import PLANS, check_tensor
from raydml.spec import JobSpec, MeshSpec


@dataclass(frozen=True)
class Candidate:
    """One strategy on one mesh: bytes held at once, bytes sent and floating-point operations of a step, of a worker.

    `impossible` says why the spec cannot have it; then the figures are 0. `head` is what of them a loss takes that has
    vectors for each class.
    """

    strategy: str
    mesh: MeshSpec
    workers: int
    memory: int = 0
    sent: int = 0
    flops: int = 0
    impossible: str | None = None
    head: HeadShare | None = None

    @property
    def name(self) -> str:
        """As a person would say it."""
        axes = [f"{axis} {size}" for axis in ("tensor", "pipeline") if (size := getattr(self.mesh, axis)) > 1]
        return " x ".join([self.strategy, *axes])


@dataclass(frozen=True)
class Facts:
    """What the formulas need of a job: `memory` as measured, operations of one row's forward, classes that train."""

    spec: JobSpec
    model: EmbeddingModel
    memory: Memory
    flops: float
    device: torch.device
    classes: int = 0

    @property
    def scattering(self) -> int:
        """What a reduce-scatter sends, over a gather of as much: gloo sums on all workers, and each keeps its part."""
        return 1 if self.device.type == "cuda" else 2

    @property
    def width(self) -> int:
        """Bytes of a number."""
        return 8 if self.spec.parallel.precision == "float64" else 4

    @property
    def slice_size(self) -> int:
        """Rows of a slice."""
        return self.spec.batch.slice_size

    def slices(self, data: int) -> int:
        """Of the fullest worker, of so many that hold different ones."""
        return -(-self.spec.batch.virtual_workers // data)

    def gathered(self, data: int) -> float:
        """Bytes sent for the embeddings of the global batch."""
        return _part(data) * self.spec.batch.size * self.spec.model.dimension * self.width


def _part(workers: int) -> float:
    """Of n bytes, what each worker sends to gather or to reduce-scatter them; to sum them on all, twice that."""
    return (workers - 1) / workers


def facts_of(spec: JobSpec, model: EmbeddingModel, memory: Memory, device: torch.device, classes: int = 0) -> Facts:
    """Counts the operations of the forward pass of one row of zeros."""
    from torch.utils.flop_counter import FlopCounterMode

    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(example_of(model))
    return Facts(spec, model, memory, counter.get_total_flops(), device, classes)


def candidates(facts: Facts, workers: int) -> list[Candidate]:
    """Every strategy that so many workers could run, or why the spec cannot have it."""
    powers = [2**power for power in range(1, workers.bit_length()) if workers % 2**power == 0]
    meshes = [("ddp", MeshSpec()), ("fsdp", MeshSpec())]
    meshes += [("tensor", MeshSpec(tensor=size)) for size in powers if size <= 8]
    meshes += [("pipeline", MeshSpec(pipeline=size)) for size in powers]
    found = []
    for strategy, mesh in meshes:
        empty = Candidate(strategy, mesh, workers)
        try:
            found.append(_with_head(facts, ESTIMATES[strategy](facts, empty)))
        except SpecError as error:
            found.append(replace(empty, impossible=error.message))
    return found


def _with_head(facts: Facts, candidate: Candidate) -> Candidate:
    """With what the loss's class vectors take; workers that share a model out hold the same ones."""
    head = head_share(facts.spec, facts.classes, candidate.workers // candidate.mesh.cell)
    if head is None:
        return candidate
    return replace(
        candidate,
        memory=candidate.memory + head.memory + head.passing,
        sent=candidate.sent + head.sent,
        flops=candidate.flops + head.flops,
        head=head,
    )


def choose_strategy(found: list[Candidate], share: int) -> tuple[Candidate, str]:
    """The candidate to take where a worker may use `share` bytes, and why.

    Half of them are for what is not counted. ddp where it fits: it alone is bitwise, and survivors of a death go on.
    """
    possible = [candidate for candidate in found if candidate.impossible is None]
    room = f"{share / 2**30:.2f} GiB of a worker (half of them for what is not counted)"
    fitting = [candidate for candidate in possible if 2 * candidate.memory <= share]
    if fitting and fitting[0].strategy == "ddp":
        return fitting[0], f"the whole model fits into {room}: bitwise, and no checkpoint is needed when a worker dies"
    if fitting:
        best = min(fitting, key=lambda candidate: (candidate.sent, candidate.flops))
        return best, f"ddp does not fit into {room}; of those that do, {best.name} sends least"
    best = min(possible, key=lambda candidate: candidate.memory)
    return (
        best,
        f"nothing fits into {room}; {best.name} holds least: more workers, smaller slices, or fsdp with offload",
    )


def with_strategy(spec: JobSpec, chosen: Candidate | Trial) -> JobSpec:
    """The spec with a candidate's or trial's strategy and mesh."""
    parallel = spec.parallel.model_copy(update={"strategy": chosen.strategy, "mesh": chosen.mesh})
    return spec.model_copy(update={"parallel": parallel})


def measured(spec: JobSpec, model: EmbeddingModel, kind: torch.dtype) -> Memory:
    """The training state of a model, after one forward pass of a slice of zeros of this type."""
    shape = (spec.batch.slice_size, *model.input_shape)
    activations = kept_by_forward(model, shape, spec.parallel.precision, kind)
    return memory_of(spec, model, activations, kind.itemsize * prod(shape))


def resolved(
    spec: JobSpec,
    model: EmbeddingModel,
    kind: torch.dtype,
    device: torch.device,
    classes: int = 0,
    known: Measured | None = None,
) -> tuple[JobSpec, str]:
    """A spec that says `auto`, with the strategy that its most workers are proposed; and why.

    `known` is what was measured of the job here: then the fastest is taken.
    """
    if known is not None and known.chosen is not None:
        return with_strategy(spec, known.chosen), f"strategy {known.chosen.name}: {known.why}"
    most = spec.parallel.workers.max
    facts = facts_of(spec, model, measured(spec, model, kind), device, classes)
    found = candidates(facts, min(most, spec.batch.virtual_workers))
    chosen, why = choose_strategy(found, worker_share(spec, most, device))
    return with_strategy(spec, chosen), f"strategy {chosen.name}: {why}"


def _ddp(facts: Facts, empty: Candidate) -> Candidate:
    workers, memory = empty.workers, facts.memory
    slices = facts.slices(workers)
    held = min(memory.keep(slices), memory.recompute(slices))
    again = 1 if held < memory.keep(slices) else 0
    sent = 2 * _part(workers) * memory.gradients + facts.gathered(workers)
    flops = (3 + again) * facts.flops * facts.slice_size * slices
    return replace(empty, memory=held, sent=int(sent), flops=int(flops))


def _fsdp(facts: Facts, empty: Candidate) -> Candidate:
    workers, memory = empty.workers, facts.memory
    slices = facts.slices(workers)
    block = max((_numbers(unit) for unit in blocks(facts.model)), default=0) * facts.width
    lasting = (memory.parameters + 2 * memory.gradients + memory.optimizer) // workers
    held = lasting + 2 * block + memory.activations_per_slice + slices * memory.inputs_per_slice
    # Recomputed slice by slice: each is gathered for its two forward passes and its backward pass, and summed up.
    a_slice = 3 * memory.parameters + facts.scattering * memory.gradients
    sent = slices * _part(workers) * a_slice + facts.gathered(workers)
    flops = 4 * facts.flops * facts.slice_size * slices
    return replace(empty, memory=held, sent=int(sent), flops=int(flops))


class _Recorder(Splitter):
    """Notes the layers of a plan, and leaves them as they are."""

    def __init__(self, model: nn.Module, workers: int) -> None:
        super().__init__(model, Peers(0, workers))
        self.columns: list[Any] = []
        self.rows: list[Any] = []

    def _turn(self, layer: nn.Module, kind: type, dims: dict[str, int], attribute: str | None = None) -> None:
        if attribute in ("out_features", "out_channels"):
            self.columns.append(layer)
        elif attribute in ("in_features", "in_channels"):
            self.rows.append(layer)

    def between(self, layer: nn.Module) -> None:
        """Small."""


def _tensor(facts: Facts, empty: Candidate) -> Candidate:
    size, data = empty.mesh.tensor, empty.workers // empty.mesh.tensor
    spec, memory, slices = facts.spec, facts.memory, facts.slices(data)
    check_tensor(facts.model, spec)
    plan = _Recorder(facts.model, size)
    PLANS[spec.model.backbone.kind](facts.model, plan)
    cut = sum(_numbers(layer) for layer in (*plan.columns, *plan.rows)) / max(1, _numbers(facts.model))
    left = 1 - cut + cut / size  # of all parameters, what a worker holds
    # Recomputed: second layers are summed in both forward passes, gradients before the first layers in the backward.
    columns = _numbers_through(facts.model, plan.columns, columns=True)
    rows = _numbers_through(facts.model, plan.rows, columns=False)
    summed = 2 * _part(size) * (2 * rows + columns) * facts.width * facts.slice_size
    lasting = left * (memory.parameters + 2 * memory.gradients + memory.optimizer)
    held = lasting + slices * memory.inputs_per_slice + memory.activations_per_slice
    sent = slices * summed + 2 * _part(data) * left * memory.gradients + facts.gathered(data)
    flops = left * 4 * facts.flops * facts.slice_size * slices
    return replace(empty, memory=int(held), sent=int(sent), flops=int(flops))


@torch.no_grad()
def _numbers_through(model: EmbeddingModel, layers: list[Any], *, columns: bool) -> int:
    """Of one row of inputs: numbers that go into layers that are given them (columns), or come out of the others."""
    found = 0

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal found
        found += (inputs[0] if columns else output).numel()

    handles = [layer.register_forward_hook(note) for layer in layers]
    model.eval()(example_of(model))
    for handle in handles:
        handle.remove()
    return found


def _pipeline(facts: Facts, empty: Candidate) -> Candidate:
    size, data = empty.mesh.pipeline, empty.workers // empty.mesh.pipeline
    memory, slices = facts.memory, facts.slices(data)
    passes = -(-slices // size) * size
    units = chain(facts.model.eval())
    example = example_of(facts.model)
    costs = costs_of(units, example)
    sizes = sizes_of_stages(units, size, None, example)
    ends = [sum(sizes[: stage + 1]) for stage in range(size)]
    stages = [range(end - count, end) for end, count in zip(ends, sizes, strict=True)]
    numbers = [sum(_numbers(units[place]) for place in stage) for stage in stages]
    most = max(numbers) / max(1, sum(numbers))
    lasting = most * (memory.parameters + 2 * memory.gradients + memory.optimizer)
    held = lasting + slices * memory.inputs_per_slice + min(passes, size) * memory.activations_per_slice / size
    borders = _numbers_at(units, ends[:-1], example)
    # To the next stage twice, with the random numbers once; to the one before once.
    border = max(borders) * facts.width * facts.slice_size
    sent: float = passes * ((3 if size > 2 else 2) * border + STATE_BYTES)
    sent += 2 * _part(data) * most * memory.gradients + facts.gathered(data)
    share = max(sum(costs[place] for place in stage) for stage in stages) / sum(costs)
    flops = share * 4 * facts.flops * facts.slice_size * passes
    return replace(empty, memory=int(held), sent=int(sent), flops=int(flops))


@torch.no_grad()
def _numbers_at(units: list[Any], ends: list[int], example: Tensor) -> list[int]:
    """Numbers of one row that cross each border between two stages."""
    found = []
    for place, unit in enumerate(units, start=1):
        example = unit(example)
        if place in ends:
            found.append(example.numel())
    return found


def _numbers(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


ESTIMATES: dict[str, Callable[[Facts, Candidate], Candidate]] = {
    "ddp": _ddp,
    "fsdp": _fsdp,
    "tensor": _tensor,
    "pipeline": _pipeline,
}
