"""The whole: one job from data to collection, and what its parts ask of each other."""

from __future__ import annotations

import hashlib
import json
from typing import Literal, Self

from pydantic import Field, model_validator

from raydml.catalogue import LossSpec
from raydml.spec.base import Frozen, Name
from raydml.spec.batch import BatchSpec, HardClasses
from raydml.spec.data import DataSpec
from raydml.spec.evaluate import EvaluateSpec, IndexSpec
from raydml.spec.model import ModelSpec
from raydml.spec.parallel import ParallelSpec
from raydml.spec.tracking import TrackerSpec
from raydml.spec.train import TrainSpec
from raydml.spec.tune import TuneSpec
from raydml.spec.watch import WatchSpec


class JobSpec(Frozen):
    """One job from data to collection."""

    name: Name = Field(description="name of the run; the same name resumes it")
    seed: int = Field(0, ge=0, lt=2**63, description="the only source of randomness")
    data: DataSpec
    batch: BatchSpec = Field(default_factory=lambda: BatchSpec())
    model: ModelSpec = Field(default_factory=lambda: ModelSpec())
    loss: LossSpec
    parallel: ParallelSpec = Field(default_factory=lambda: ParallelSpec())
    train: TrainSpec = Field(default_factory=lambda: TrainSpec())
    evaluate: EvaluateSpec = Field(default_factory=lambda: EvaluateSpec())
    watch: WatchSpec = Field(default_factory=lambda: WatchSpec())
    index: IndexSpec | None = None
    tracking: tuple[TrackerSpec, ...] = Field(
        (), max_length=2, description="where the numbers go besides the run's folder"
    )
    tune: TuneSpec | None = Field(None, description="a search over this spec's fields, for raydml tune")

    @model_validator(mode="after")
    def _each_tracker_once(self) -> Self:
        kinds = [each.kind for each in self.tracking]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"tracking: {', '.join(kinds)}: name each tracker once")
        return self

    @model_validator(mode="after")
    def _every_worker_has_a_slice(self) -> Self:
        cell = self.parallel.mesh.cell
        if self.parallel.workers.min > self.batch.virtual_workers * cell:
            raise ValueError(
                f"parallel.workers.min = {self.parallel.workers.min} is more than batch.virtual_workers = "
                f"{self.batch.virtual_workers}{f' x {cell} workers that hold the same slices' if cell > 1 else ''}: "
                f"a worker needs at least one slice, raise virtual_workers or lower min"
            )
        return self

    @model_validator(mode="after")
    def _slices_hold_statistics(self) -> Self:
        if self.model.batch_norm == "per_slice" and self.batch.slice_size < 2:
            raise ValueError(
                f"batch_norm: per_slice needs at least 2 rows a slice, and {self.batch.size} rows in "
                f"{self.batch.virtual_workers} slices leave 1: lower virtual_workers or choose batch_norm: group"
            )
        return self

    @model_validator(mode="after")
    def _slices_that_meet_run_once(self) -> Self:
        if self.model.batch_norm == "synchronised" and self.parallel.memory == "recompute":
            raise ValueError(
                "parallel.memory: recompute runs slices one at a time, and batch_norm: synchronised needs them all at "
                "once: choose memory: keep, or batch_norm: per_slice or group"
            )
        return self

    @model_validator(mode="after")
    def _columns_of_a_linear_map_are_cut(self) -> Self:
        kind, precision = self.model.backbone.kind, self.parallel.precision
        if self.parallel.strategy == "feature" and (kind != "linear" or precision not in ("float32", "float64")):
            raise ValueError(
                f"parallel.strategy: feature cuts a linear metric in float32 or float64 by input features, and this is "
                f"{kind} in {precision}: choose model.backbone.kind: linear, or strategy ddp"
            )
        return self

    @model_validator(mode="after")
    def _slices_that_meet_have_one_gradient(self) -> Self:
        if self.model.batch_norm == "synchronised" and self.parallel.compression.kind != "none":
            raise ValueError(
                f"parallel.compression: {self.parallel.compression.kind} compresses the gradient of each slice, and "
                "batch_norm: synchronised has one of all: choose batch_norm: per_slice or group"
            )
        return self

    @model_validator(mode="after")
    def _hard_classes_are_looked_for(self) -> Self:
        sampling = self.batch.sampling
        if isinstance(sampling, HardClasses) and sampling.refresh_every >= self.train.steps:
            raise ValueError(
                f"batch.sampling.refresh_every = {sampling.refresh_every} comes to nothing in train.steps = "
                f"{self.train.steps}: lower it, or choose uniform"
            )
        return self

    @model_validator(mode="after")
    def _memory_holds_a_batch_and_is_used(self) -> Self:
        memory = getattr(self.loss, "memory", None)
        if memory is not None and memory.size < self.batch.size:
            raise ValueError(
                f"loss.memory.size = {memory.size} is less than one global batch of {self.batch.classes} x "
                f"{self.batch.samples} = {self.batch.size} rows: raise it, by the paper to many batches"
            )
        if memory is not None and memory.start_step >= self.train.steps:
            raise ValueError(
                f"loss.memory.start_step = {memory.start_step} is never reached by train.steps = {self.train.steps}: "
                f"lower it, or leave the memory out"
            )
        return self

    @model_validator(mode="after")
    def _rows_that_catch_up_know_every_step(self) -> Self:
        rate = getattr(getattr(self.loss, "class_parallel", None), "sample_rate", 1)
        if rate < 1 and self.parallel.precision == "fp16":
            raise ValueError(
                f"loss.class_parallel.sample_rate = {rate} lets class vectors catch up with the steps that they "
                "missed, and precision: fp16 skips steps: choose bf16 or float32, or sample_rate: 1"
            )
        return self

    @property
    def exactness(self) -> Literal["bitwise", "exact", "compressed"]:
        """How equal runs of this spec are, whatever their workers; compressed: the same bits of a rounded sum."""
        if self.parallel.compression.kind != "none":
            return "compressed"
        plain = self.parallel.numerics == "fast" or self.model.batch_norm == "synchronised"
        plain = plain or self.parallel.strategy not in ("ddp", "feature")
        return "exact" if plain else "bitwise"

    @property
    def state(self) -> Literal["replicated", "sharded"]:
        """Whether every worker holds the whole state, or parts of it only, which checkpoints hand over."""
        residuals = self.parallel.compression.kind in ("powersgd", "topk")
        apart = self.parallel.strategy != "ddp" or self.classes_on_owners or residuals
        return "sharded" if apart else "replicated"

    @property
    def classes_on_owners(self) -> bool:
        """Whether the loss keeps something of each class on one worker only."""
        losses = (self.loss, getattr(self.loss, "center", None))
        return any(bool(getattr(loss, "class_parallel", None)) for loss in losses)

    def digest(self) -> str:
        """SHA-256 of everything that decides the trained bits, but for the data, which has a fingerprint of its own.

        Not in it: the name, where the data lies, workers' numbers, memory, shares and losses, loader processes, what is
        kept, measured, said and searched; nor the strategy and its mesh, which load each other's checkpoints: they
        round differently, and a run records its level.
        """
        beside = dict.fromkeys(("name", "evaluate", "watch", "index", "tracking", "tune"), True)
        document = self.model_dump(mode="json", exclude=beside)
        del document["model"]["card"]
        for name in ("min", "max", "cpus", "memory"):
            del document["parallel"]["workers"][name]
        for name in ("memory", "exchange", "balance", "patience", "tolerate"):
            del document["parallel"][name]  # the same bits
        for name in ("strategy", "mesh", "offload", "pipeline"):
            del document["parallel"][name]
        for name in ("loader_processes", "path", "plugin", "fold"):
            document["data"].pop(name, None)
        (document["data"].get("text") or {}).pop("path", None)
        for name in ("evaluate_every", "checkpoint_every", "keep_last", "export"):
            del document["train"][name]
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
