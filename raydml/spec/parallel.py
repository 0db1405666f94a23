"""How a run spreads over workers, and what it outlives."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from raydml.spec.base import Frozen


class WorkersSpec(Frozen):
    """How many workers may train, and what each holds."""

    min: int = Field(1, ge=1, le=1024, description="fewest workers to start with")
    max: int = Field(1, ge=1, le=1024, description="most workers; rounded down to what the strategy can use")
    threads: int = Field(
        1, ge=1, le=256, description="CPU threads of a worker; part of the arithmetic, so part of the spec"
    )
    cpus: float = Field(1.0, gt=0, le=256, description="CPUs that a worker reserves in Ray")
    memory: float | None = Field(
        None, gt=0, le=2**20, description="GiB a worker may use, for memory: auto; default: its share of the machine"
    )

    @model_validator(mode="before")
    @classmethod
    def _a_number_is_both(cls, value: Any) -> Any:
        return {"min": value, "max": value} if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min = {self.min} workers is more than max = {self.max}")
        return self


class TolerateSpec(Frozen):
    """What a run outlives. Rates, never totals: a job on spot machines may lose workers for days."""

    failures_per_hour: int = Field(
        30, ge=0, le=100_000, description="workers that may die or fall silent within any hour; one more stops the run"
    )
    preemptions_per_hour: int = Field(
        300, ge=0, le=100_000, description="workers that may leave with notice within any hour; one more stops the run"
    )
    resizes_per_hour: int = Field(
        60, ge=0, le=100_000, description="requests to resize within any hour; one more is refused, and the run goes on"
    )
    poison: int = Field(
        3, ge=2, le=1000, description="workers that die at one and the same step until the run stops with its batch"
    )
    failed_saves: int = Field(
        3, ge=0, le=1000, description="checkpoints in a row that may fail to be written; one more stops the run"
    )


class MeshSpec(Frozen):
    """Workers as a grid of named axes; their number is data x tensor x pipeline."""

    data: int = Field(-1, ge=-1, le=1024, description="workers with slices of their own; -1: all that there are")
    shard: int = Field(
        -1, ge=-1, le=1024, description="of fsdp: workers of the data axis that share a copy of the model; -1: all"
    )
    tensor: int = Field(1, ge=1, le=1024, description="workers that share each layer")
    pipeline: int = Field(1, ge=1, le=1024, description="stages that the layers are cut into")

    @field_validator("data", "shard")
    @classmethod
    def _not_zero(cls, value: int) -> int:
        if value == 0:
            raise ValueError("0 workers: write -1 for all that there are, or a number from 1 on")
        return value

    @property
    def cell(self) -> int:
        """Workers that hold one copy of the model, and the same slices."""
        return self.tensor * self.pipeline


class NoCompression(Frozen):
    """Gradients travel as they are."""

    kind: Literal["none"] = "none"


class HalfGradients(Frozen):
    """Gradients and their partial sums are rounded to 16 bits; fp16 ends at 65,504 and at 6e-8, bf16 has 8 bits."""

    kind: Literal["fp16", "bf16"]


class PowerSgd(Frozen):
    """Matrices travel as two thin ones, with error feedback and a warm start (Vogels et al., NeurIPS 2019)."""

    kind: Literal["powersgd"] = "powersgd"
    rank: int = Field(4, ge=1, le=1024, description="columns of the thin matrices")


class TopK(Frozen):
    """The largest entries of each slice's gradient travel, the others wait in a residual (error feedback)."""

    kind: Literal["topk"] = "topk"
    share: float = Field(0.01, gt=0, lt=1, description="part of all entries that a slice sends")


CompressionSpec = Annotated[NoCompression | HalfGradients | PowerSgd | TopK, Field(discriminator="kind")]


class PipelineSpec(Frozen):
    """How a pipeline runs."""

    schedule: Literal["gpipe", "one_f_one_b", "interleaved", "zero_bubble"] = Field(
        "one_f_one_b",
        description="order of forward and backward passes: GPipe, 1F1B, interleaved 1F1B, or zero-bubble (ZB1P)",
    )
    stages: int = Field(1, ge=1, le=16, description="stages of each worker, for interleaved and zero_bubble")
    split: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None, description="units of each stage, first to last; None: balanced by counted operations"
    )

    @model_validator(mode="after")
    def _one_stage_or_more(self) -> Self:
        if self.stages > 1 and self.schedule in ("gpipe", "one_f_one_b"):
            raise ValueError(
                f"pipeline.schedule: {self.schedule} has 1 stage a worker, not {self.stages}: choose interleaved or "
                f"zero_bubble"
            )
        if self.stages == 1 and self.schedule == "interleaved":
            raise ValueError("pipeline.schedule: interleaved needs stages = 2 or more of each worker")
        return self


class ParallelSpec(Frozen):
    """How the model runs over workers."""

    strategy: Literal["ddp", "feature", "fsdp", "tensor", "pipeline", "auto"] = Field(
        "ddp",
        description="ddp: each worker holds the whole model; fsdp: parameters, gradients and moments are shared out; "
        "tensor: workers share each layer; pipeline: each has some layers, which tensor may share again; "
        "feature: the columns of a linear backbone are shared out, each worker with those input features of all rows; "
        "auto: as `raydml plan` proposes for workers.max",
    )
    workers: WorkersSpec = Field(default_factory=lambda: WorkersSpec())
    mesh: MeshSpec = Field(default_factory=lambda: MeshSpec(), description="the axes of the strategies beside ddp")
    pipeline: PipelineSpec = Field(default_factory=lambda: PipelineSpec(), description="of strategy pipeline")
    offload: bool = Field(False, description="fsdp: parameters, gradients and moments wait in the host's memory")
    numerics: Literal["bitwise", "fast"] = Field(
        "bitwise", description="fixed-tree reduction (the same bits for any workers) or plain all-reduce (exact)"
    )
    memory: Literal["keep", "recompute", "auto"] = Field(
        "auto",
        description="keep the graphs of all own slices, or recompute them one at a time (the same bits, one slice's "
        "activations, a second forward); auto: keep what fits into half of a worker's memory",
    )
    exchange: Literal["gather", "ring", "auto"] = Field(
        "auto",
        description="embeddings of a batch: all on every worker, or around a ring of workers, each with its share (the "
        "same bits); auto: around a ring from 64 MiB on, where the loss can",
    )
    precision: Literal["float32", "bf16", "fp16", "float64"] = Field(
        "float32", description="of the model; losses never run below float32; fp16 scales the loss, and skips overflows"
    )
    compression: CompressionSpec = Field(
        default_factory=lambda: NoCompression(),
        description="of the gradients that ddp sums over workers: a word alone, none, fp16, bf16, powersgd or topk, is "
        "the kind",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: a GPU per worker where the cluster has them"
    )
    balance: Literal["equal", "measured"] = Field(
        "equal", description="slices of each worker: as many for all, or by its measured speed; the bits are the same"
    )
    patience: float = Field(
        3.0, ge=1, le=3600, description="seconds without a sign of life after which a worker counts as lost"
    )
    tolerate: TolerateSpec = Field(default_factory=lambda: TolerateSpec(), description="what the run outlives")

    @field_validator("compression", mode="before")
    @classmethod
    def _a_word_is_the_kind(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _gradients_of_single_slices_are_compressed(self) -> Self:
        kind = self.compression.kind
        if kind != "none" and (self.strategy != "ddp" or self.numerics == "fast"):
            raise ValueError(
                f"compression: {kind} is for the slices' gradients of strategy ddp with numerics: bitwise, not for "
                f"{self.strategy} with {self.numerics}"
            )
        if kind in ("powersgd", "topk") and self.precision == "fp16":
            raise ValueError(
                f"compression: {kind} keeps what it leaves out for later steps, and precision: fp16 scales each step's "
                "gradients anew: choose bf16 or float32, or compression: fp16"
            )
        return self

    @model_validator(mode="after")
    def _only_what_the_strategy_uses(self) -> Self:
        used = MESH_AXES[self.strategy]
        for axis in ("shard", "tensor", "pipeline"):
            length = getattr(self.mesh, axis)
            if length != MeshSpec.model_fields[axis].default and axis not in used:
                fitting = [name for name, axes in MESH_AXES.items() if axis in axes]
                raise ValueError(
                    f"mesh.{axis} = {length} is not for strategy {self.strategy}: leave it out, or choose "
                    f"{' or '.join(fitting)}"
                )
        own_axis = self.strategy if self.strategy in ("tensor", "pipeline") else None
        if own_axis is not None and getattr(self.mesh, own_axis) == 1:
            raise ValueError(f"strategy {own_axis} needs mesh.{own_axis} = 2 or more")
        if self.pipeline != PipelineSpec() and self.strategy != "pipeline":
            raise ValueError(f"pipeline is for strategy pipeline, not for {self.strategy}: leave it out")
        if self.offload and self.strategy != "fsdp":
            raise ValueError(f"offload is for strategy fsdp, not for {self.strategy}")
        if self.strategy != "ddp" and self.precision == "fp16":
            raise ValueError(
                f"precision: fp16 runs a step that overflows again in float32, and {self.strategy} holds the model in "
                f"one precision: choose bf16, which needs no loss scale, or strategy ddp"
            )
        if self.mesh.tensor > 1 and self.pipeline.schedule == "zero_bubble":
            raise ValueError(
                "pipeline.schedule: zero_bubble runs each backward pass in two halves, and mesh.tensor > 1 "
                "would sum in both: choose one_f_one_b or interleaved"
            )
        if self.mesh.cell > 1 and self.balance == "measured":
            raise ValueError("balance: measured deals slices to single workers: leave it out, or choose ddp or fsdp")
        return self


class MeasureSpec(Frozen):
    """How strategies are measured by `raydml plan --measure`."""

    steps: int = Field(5, ge=2, le=1000, description="steps of each trial that are counted, after two that are not")
    seconds: float = Field(600.0, gt=0, le=86_400, description="after which a trial is given up")
    rounding: bool = Field(False, description="also try what rounds more: bf16 and compressed gradients")


# The axes of the mesh that each strategy uses, beside data.
MESH_AXES: dict[str, tuple[str, ...]] = {
    "ddp": (),
    "feature": (),
    "fsdp": ("shard",),
    "tensor": ("tensor",),
    "pipeline": ("pipeline", "tensor"),
    "auto": (),
}
