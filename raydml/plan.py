"""A spec and its data in; what training would do with them out, before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raydml.data import DataReport, Dataset, SamplingPlan
from raydml.errors import DataError
from raydml.membership import share
from raydml.models import build_model, check_inputs
from raydml.spec import CustomBackbone, JobSpec, Sgd


@dataclass(frozen=True)
class SplitSize:
    """How much one split holds."""

    classes: int
    images: int


@dataclass(frozen=True)
class Memory:
    """Bytes of the training state: what every worker holds, and what each of its slices adds.

    Counted: parameters, gradients (those of one slice and the partial sums that wait beside them), the optimiser's
    moments, and what autograd keeps of the forward pass of one slice (measured), for every slice that a worker holds.
    Not counted: the data, the loss, the libraries themselves (about 0.5 GB).
    """

    parameters: int
    gradients: int
    optimizer: int
    activations_per_slice: int
    tree: bool

    def worker(self, num_slices: int) -> int:
        """Bytes of a worker that holds this many slices; the fixed tree keeps a partial sum per level."""
        sets = 1 + (num_slices.bit_length() if self.tree else 1)
        return self.parameters + sets * self.gradients + self.optimizer + num_slices * self.activations_per_slice


@dataclass(frozen=True)
class Plan:
    """What `raydml plan` prints."""

    spec: JobSpec
    splits: dict[str, SplitSize]
    notes: tuple[str, ...]
    batches_per_pass: int
    problem: str | None
    slices: dict[int, list[list[int]]]
    parameters: int | None
    trained_parameters: int | None
    memory: Memory | None

    @property
    def exactness(self) -> str:
        """The level of exactness that the spec reaches."""
        return self.spec.exactness

    def worker_bytes(self, world_size: int) -> int | None:
        """Memory of the fullest worker among this many."""
        return self.memory.worker(max(map(len, self.slices[world_size]))) if self.memory else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "spec": self.spec.model_dump(mode="json"),
            "splits": {name: asdict(size) for name, size in self.splits.items()},
            "notes": list(self.notes),
            "batches": {
                "possible": self.problem is None,
                "size": self.spec.batch.size,
                "per_pass": self.batches_per_pass,
                "problem": self.problem,
            },
            "slices": {str(world_size): held for world_size, held in self.slices.items()},
            "parameters": self.parameters,
            "trained_parameters": self.trained_parameters,
            "memory": asdict(self.memory) if self.memory else None,
            "worker_bytes": {str(size): self.worker_bytes(size) for size in self.slices},
            "exactness": self.exactness,
        }


def plan(spec: JobSpec, dataset: Dataset) -> Plan:
    """Everything that follows from the spec and its data. DataError and SpecError where the model does not fit them.

    Batches that the data cannot fill are a `problem` of the plan; a custom model is not counted.
    """
    report = dataset.report
    batches, problem = _batches(spec, dataset)
    model = None if isinstance(spec.model.backbone, CustomBackbone) else _model(spec, dataset)
    sizes = range(spec.parallel.workers.min, spec.parallel.workers.max + 1)
    return Plan(
        spec=spec,
        splits={name: SplitSize(report.classes[name], report.images[name]) for name in report.images},
        notes=tuple(_notes(report)),
        batches_per_pass=batches,
        problem=problem,
        slices={size: _slices(size, spec.batch.virtual_workers) for size in sizes},
        parameters=None if model is None else sum(p.numel() for p in model.parameters()),
        trained_parameters=None if model is None else sum(p.numel() for p in _trained(model)),
        memory=None if model is None else _memory(spec, dataset, model),
    )


def _batches(spec: JobSpec, dataset: Dataset) -> tuple[int, str | None]:
    try:
        return SamplingPlan(dataset.training_labels, spec.batch, spec.seed).batches_per_pass, None
    except DataError as error:
        return 0, str(error)


def _notes(report: DataReport) -> Iterator[str]:
    if report.shared_classes:
        yield f"{report.shared_classes} classes stand in both train and test"
    if report.num_duplicates:
        yield f"{report.num_duplicates} test images also stand in train, such as {report.duplicates[0]}"
    if report.skipped:
        yield f"{len(report.skipped)} bad items are left out, such as {report.skipped[0]}"


def _slices(world_size: int, num_slices: int) -> list[list[int]]:
    return [list(share(rank, world_size, num_slices)) for rank in range(world_size)]


def _model(spec: JobSpec, dataset: Dataset) -> nn.Module:
    model = build_model(spec.model, dataset.input_shape, spec.seed)
    check_inputs(spec.model, model, dataset.preprocessing)
    return model


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _memory(spec: JobSpec, dataset: Dataset, model: nn.Module) -> Memory:
    width = 8 if spec.parallel.precision == "float64" else 4
    trained = sum(parameter.numel() for parameter in _trained(model)) * width
    optimizer = spec.train.optimizer
    moments = (1 if optimizer.momentum else 0) if isinstance(optimizer, Sgd) else 2
    return Memory(
        parameters=sum(parameter.numel() for parameter in model.parameters()) * width,
        gradients=trained,
        optimizer=moments * trained,
        activations_per_slice=_kept(spec, dataset, model) * width // 4,
        tree=spec.exactness == "bitwise",
    )


def _kept(spec: JobSpec, dataset: Dataset, model: nn.Module) -> int:
    shape = (spec.batch.slice_size, *dataset.input_shape)
    return kept_by_forward(model, shape, dataset.preprocessing.type)


def kept_by_forward(model: nn.Module, shape: tuple[int, ...], kind: torch.dtype = torch.float32) -> int:
    """Bytes that autograd keeps for the backward pass of inputs of this shape and type, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # or the allocator would hand an address out twice

    def remember(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        model.train()(torch.zeros(shape, dtype=kind))
    return sum(kept.values())
