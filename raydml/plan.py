"""A spec and its data in; what training would do with them out, before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raydml.data import DataReport, Dataset, sampling_plan
from raydml.errors import DataError
from raydml.membership import share
from raydml.models import EmbeddingModel, build_model, check_inputs
from raydml.parallel import fit, world_sizes
from raydml.parallel.estimate import Candidate, candidates, choose_strategy, facts_of, measured, with_strategy
from raydml.parallel.measured import Measured, key_of, recall
from raydml.parallel.memory import Memory, choose, worker_share
from raydml.spec import CustomBackbone, JobSpec


@dataclass(frozen=True)
class SplitSize:
    """How much one split holds."""

    classes: int
    images: int


@dataclass(frozen=True)
class Choice:
    """Bytes of the fullest worker either way, its share of the machine, and what `parallel.memory` makes of them."""

    keep: int
    recompute: int
    share: int
    chosen: str


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
    device: torch.device
    candidates: tuple[Candidate, ...] = ()  # of the most workers
    proposal: tuple[Candidate, str] | None = None  # and why
    measured: Measured | None = None  # of this job, on this machine

    @property
    def exactness(self) -> str:
        """The level of exactness that the spec reaches."""
        return self.spec.exactness

    @property
    def world_sizes(self) -> list[int]:
        """Numbers of workers that the run may have."""
        return list(self.slices)

    @property
    def rounded_down(self) -> str | None:
        """Why `workers.max` cannot all be used; None where they can."""
        return fit(self.spec, self.spec.parallel.workers.max).reason

    def choice(self, world_size: int) -> Choice | None:
        """What the fullest worker among this many does with its slices, as if all of them ran on this machine."""
        if self.memory is None:
            return None
        held = max(map(len, self.slices[world_size]))
        share = worker_share(self.spec, world_size, self.device)
        chosen = choose(self.spec, self.memory, held, share)
        return Choice(self.memory.keep(held), self.memory.recompute(held), share, chosen)

    def worker_bytes(self, world_size: int) -> int | None:
        """Memory of the fullest worker among this many, as it is chosen."""
        choice = self.choice(world_size)
        return None if choice is None else choice.keep if choice.chosen == "keep" else choice.recompute

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
            "world_sizes": self.world_sizes,
            "rounded_down": self.rounded_down,
            "slices": {str(world_size): held for world_size, held in self.slices.items()},
            "parameters": self.parameters,
            "trained_parameters": self.trained_parameters,
            "memory": asdict(self.memory) if self.memory else None,
            "worker_bytes": {str(size): self.worker_bytes(size) for size in self.slices},
            "choices": {str(size): asdict(choice) for size in self.slices if (choice := self.choice(size))},
            "exactness": self.exactness,
            "strategies": [{**asdict(candidate), "mesh": candidate.mesh.model_dump()} for candidate in self.candidates],
            "measured": self.measured and self.measured.to_dict(),
            "proposal": self.proposal and {"strategy": self.proposal[0].name, "why": self.proposal[1]},
        }


def plan(spec: JobSpec, dataset: Dataset, home: Path | None = None) -> Plan:
    """Everything that follows from the spec and its data. DataError and SpecError where the model does not fit them.

    Batches that the data cannot fill are a `problem` of the plan; a custom model is not counted. What was measured of
    this job, under `home`, decides what is proposed.
    """
    report = dataset.report
    batches, problem = _batches(spec, dataset)
    model = None if isinstance(spec.model.backbone, CustomBackbone) else _model(spec, dataset)
    memory = None if model is None else measured(spec, model, dataset.preprocessing.type)
    device, most = _device(spec), fit(spec, spec.parallel.workers.max).workers
    found: tuple[Candidate, ...] = ()
    if memory is not None and model is not None:
        found = tuple(candidates(facts_of(spec, model, memory, device, dataset.num_training_classes), most))
    known = None if home is None else recall(home, key_of(spec, dataset))
    proposal = _proposal(found, worker_share(spec, most, device), known) if found else None
    if spec.parallel.strategy == "auto" and proposal is not None:
        spec = with_strategy(spec, proposal[0])
    return Plan(
        spec=spec,
        splits={name: SplitSize(report.classes[name], report.images[name]) for name in report.images},
        notes=tuple(_notes(report)),
        batches_per_pass=batches,
        problem=problem,
        slices={size: _slices(size, spec.batch.virtual_workers) for size in world_sizes(spec)},
        parameters=None if model is None else sum(p.numel() for p in model.parameters()),
        trained_parameters=None if model is None else sum(p.numel() for p in _trained(model)),
        memory=memory,
        device=device,
        candidates=found,
        proposal=proposal,
        measured=known,
    )


def _proposal(found: Sequence[Candidate], share: int, known: Measured | None) -> tuple[Candidate, str]:
    """The fastest one of those that were measured, or what the cost model says."""
    chosen = known and known.chosen
    for candidate in found:
        if known and chosen and (candidate.strategy, candidate.mesh) == (chosen.strategy, chosen.mesh):
            return candidate, known.why
    return choose_strategy(list(found), share)


def _batches(spec: JobSpec, dataset: Dataset) -> tuple[int, str | None]:
    try:
        return sampling_plan(dataset, spec.batch, spec.seed).batches_per_pass, None
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


def _model(spec: JobSpec, dataset: Dataset) -> EmbeddingModel:
    model = build_model(spec.model, dataset.input_shape, spec.seed)
    check_inputs(spec.model, model, dataset.preprocessing)
    return model


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _device(spec: JobSpec) -> torch.device:
    """Where workers would run on this machine."""
    wanted = spec.parallel.device
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
