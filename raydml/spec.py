"""The job spec: what goes in is YAML, JSON or Python, what comes out is one frozen, fully checked value."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from raydml.catalogue import LossSpec


class Frozen(BaseModel):
    """Base of all parts of a spec: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class AugmentSpec(Frozen):
    """Random changes of training inputs, each drawn from (seed, step, row)."""

    shift: float = Field(0.0, ge=0, le=0.5, description="largest translation, as a fraction of the image size")
    rotate: float = Field(0.0, ge=0, le=180, description="largest rotation, degrees")
    scale: float = Field(0.0, ge=0, lt=1, description="largest relative change of size")
    flip: bool = Field(False, description="mirror left-right with probability 1/2")
    brightness: float = Field(0.0, ge=0, lt=1, description="largest relative change of brightness")
    contrast: float = Field(0.0, ge=0, lt=1, description="largest relative change of contrast")
    noise: float = Field(0.0, ge=0, description="standard deviation of Gaussian noise on the normalised input")


class DataBase(Frozen):
    """Options that every kind of data shares."""

    augment: AugmentSpec = Field(default_factory=lambda: AugmentSpec(), description="training-time augmentation")
    on_bad_item: Literal["fail", "skip"] = Field(
        "fail", description="what a corrupt item does; skipped ones are counted"
    )
    loader_processes: int = Field(
        0, ge=0, le=64, description="processes per worker that prepare batches; 0: in the worker"
    )


class ImageOptions(DataBase):
    """Options of every kind of data that holds images."""

    image_size: int = Field(32, ge=4, le=2048, description="images are resized to this many pixels on both sides")
    grayscale: bool = Field(False, description="one channel instead of three")


class GlyphsData(ImageOptions):
    """Characters as classes, font faces as instances: 32 x 32 drawings from the fonts in matplotlib."""

    kind: Literal["glyphs"] = "glyphs"
    image_size: int = Field(32, ge=8, le=256, description="side of the drawing, pixels")
    grayscale: bool = Field(True, description="one channel instead of three")


class ImageFolderData(ImageOptions):
    """`path/class/*.png`, or `path/{train,validation,test}/class/*.png`."""

    kind: Literal["image_folder"] = "image_folder"
    path: str = Field(description="the folder")


class NgramsText(Frozen):
    """Texts as hashed character n-grams: no vocabulary, any language. Goes with the backbone ngram_bag."""

    kind: Literal["ngrams"] = "ngrams"
    shortest: int = Field(3, ge=1, le=16, description="fewest characters of an n-gram")
    longest: int = Field(5, ge=1, le=16, description="most characters of an n-gram")
    length: int = Field(256, ge=1, le=65536, description="n-grams kept of a text")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.shortest > self.longest:
            raise ValueError(f"shortest = {self.shortest} characters is more than longest = {self.longest}")
        return self


class TokenizerText(Frozen):
    """Texts as the tokens of a model of the `transformers` library; its tokenizer travels with the trained model."""

    kind: Literal["tokenizer"] = "tokenizer"
    path: str = Field(min_length=1, description="local folder of the saved tokenizer")
    length: int = Field(64, ge=3, le=65536, description="tokens kept of a text, special ones among them")


TextSpec = Annotated[NgramsText | TokenizerText, Field(discriminator="kind")]


class ManifestData(ImageOptions):
    """A CSV, JSONL or Parquet table, one row an item: a label and a path, the bytes of a picture, or a text."""

    kind: Literal["manifest"] = "manifest"
    path: str = Field(description="the table; image paths in it are relative to its folder")
    text: TextSpec | None = Field(None, description="items are texts of the column text, and how they become tokens")


class ArraysData(ImageOptions):
    """Arrays `inputs` and `labels` in one .npz, or `inputs.npy` and `labels.npy` in a folder."""

    kind: Literal["arrays"] = "arrays"
    path: str = Field(description="the .npz file or the folder")


class CustomData(DataBase):
    """A torch Dataset handed to `raydml.train(spec, dataset=...)`."""

    kind: Literal["custom"] = "custom"


DataSpec = Annotated[GlyphsData | ImageFolderData | ManifestData | ArraysData | CustomData, Field(discriminator="kind")]


class Uniform(Frozen):
    """Passes over all classes: each class once a pass."""

    kind: Literal["uniform"] = "uniform"


class Frequency(Frozen):
    """Each batch anew, a class weighted by its number of training images n, or by sqrt(n)."""

    kind: Literal["frequency", "sqrt_frequency"]


class Hierarchical(Frozen):
    """Each batch anew: categories first, then classes of these categories, all alike (column `category`)."""

    kind: Literal["hierarchical"] = "hierarchical"
    categories_per_batch: int = Field(
        1, ge=1, le=65536, description="G, categories in a global batch; P / G classes each"
    )
    small_categories: Literal["fail", "drop"] = Field(
        "fail", description="a category with fewer than P / G classes is refused, or left out"
    )


class HardClasses(Frozen):
    """Classes with those that the model takes for them (hard negative class mining: Sohn, NeurIPS 2016).

    Uniform up to the first refresh, or with those that `negatives` tells of.
    """

    kind: Literal["hard_classes"] = "hard_classes"
    neighbours: int = Field(3, ge=1, le=65535, description="m, nearest classes that come along; about P / (1 + m) lead")
    refresh_every: int = Field(200, ge=1, description="steps between looks for the nearest classes")
    images: int = Field(4, ge=1, le=1024, description="training images of a class whose mean embedding stands for it")
    negatives: str | None = Field(
        None,
        min_length=1,
        description="hard negatives that a collection has exported (JSON lines), for batches before the first refresh",
    )


SamplingSpec = Annotated[Uniform | Frequency | Hierarchical | HardClasses, Field(discriminator="kind")]


class BatchSpec(Frozen):
    """The global batch: P classes x K samples, cut into V equal slices whatever the number of workers."""

    classes: int = Field(32, ge=2, le=65536, description="P, classes in a global batch")
    samples: int = Field(4, ge=1, le=65536, description="K, samples of each class")
    virtual_workers: int = Field(8, ge=1, le=1024, description="V, equal slices of the batch")
    small_classes: Literal["repeat", "drop"] = Field(
        "repeat", description="a class with fewer than K images repeats them evenly, or is left out"
    )
    sampling: SamplingSpec = Field(default_factory=lambda: Uniform(), description="which classes meet in a batch")

    @property
    def size(self) -> int:
        """Rows of the global batch, P x K."""
        return self.classes * self.samples

    @property
    def slice_size(self) -> int:
        """Rows of one slice, P x K / V."""
        return self.size // self.virtual_workers

    @model_validator(mode="after")
    def _slices_are_equal(self) -> Self:
        if self.size % self.virtual_workers:
            divisors = [v for v in range(1, min(self.size, 64) + 1) if self.size % v == 0]
            raise ValueError(
                f"classes x samples = {self.classes} x {self.samples} = {self.size} rows cannot be cut into "
                f"{self.virtual_workers} equal slices: choose virtual_workers from {divisors}"
            )
        return self

    @model_validator(mode="after")
    def _categories_share_the_classes(self) -> Self:
        sampling = self.sampling
        if isinstance(sampling, Hierarchical) and self.classes % sampling.categories_per_batch:
            divisors = [number for number in range(1, min(self.classes, 64) + 1) if self.classes % number == 0]
            raise ValueError(
                f"classes = {self.classes} cannot be shared equally by {sampling.categories_per_batch} categories: "
                f"choose sampling.categories_per_batch from {divisors}"
            )
        return self

    @model_validator(mode="after")
    def _neighbours_fit_beside_their_class(self) -> Self:
        if isinstance(self.sampling, HardClasses) and self.sampling.neighbours >= self.classes:
            raise ValueError(
                f"sampling.neighbours = {self.sampling.neighbours} and their class are more than the classes = "
                f"{self.classes} of a batch: lower neighbours to {self.classes - 1} or less"
            )
        return self


class SmallCnn(Frozen):
    """A residual convolutional network of about 0.7 M parameters for small images."""

    kind: Literal["small_cnn"] = "small_cnn"
    # With channels that 8 does not divide, oneDNN in torch 2.13 writes past its buffers on some processors.
    width: int = Field(32, ge=16, le=512, multiple_of=16, description="channels of the first convolution")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the embedding head")


class Mlp(Frozen):
    """Fully connected layers over the flattened input."""

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = Field(
        (256, 256), description="widths of the hidden layers"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout after each hidden layer")
    batch_norm: bool = Field(True, description="batch norm after each hidden layer")


class Linear(Frozen):
    """One linear map of the flattened input: a learned Mahalanobis metric, D(x, y)^2 = |L(x - y)|^2."""

    kind: Literal["linear"] = "linear"


class CustomBackbone(Frozen):
    """A torch module handed to `raydml.train(spec, model=...)` that maps inputs to (batch, dimension)."""

    kind: Literal["custom"] = "custom"


class NgramBag(Frozen):
    """The mean of learned vectors of a text's hashed n-grams (Joulin et al. 2017)."""

    kind: Literal["ngram_bag"] = "ngram_bag"
    buckets: int = Field(16384, ge=16, le=1 << 24, description="vectors; an n-gram's hash modulo this chooses one")
    width: int = Field(128, ge=1, le=65536, description="length of a vector")


class TransformersSpec(Frozen):
    """A vision or text model of the `transformers` library; nothing is ever downloaded."""

    kind: Literal["transformers"] = "transformers"
    architecture: str | None = Field(
        None,
        pattern=r"^[A-Z][A-Za-z0-9]{0,99}$",
        description="class name, such as ResNetModel, ViTModel or BertModel; None: the one that the folder names",
    )
    config: dict[str, Any] = Field(
        default_factory=dict, description="options of its configuration that differ from the library's or the folder's"
    )
    path: str | None = Field(
        None, min_length=1, description="local folder with config.json and safetensors; None: fresh weights"
    )
    pooling: Literal["mean", "cls", "pooler"] = Field(
        "mean", description="features: mean over positions (padding left out), the first position, or its own pooler"
    )

    @field_validator("config")
    @classmethod
    def _config_is_json(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"cannot be written as JSON: {error}") from error
        return value

    @model_validator(mode="after")
    def _something_names_it(self) -> Self:
        if self.architecture is None and self.path is None:
            raise ValueError("transformers needs an architecture, such as ViTModel, or the path of a local folder")
        return self


BackboneSpec = Annotated[
    SmallCnn | Mlp | Linear | NgramBag | TransformersSpec | CustomBackbone, Field(discriminator="kind")
]


class CardSpec(Frozen):
    """What a person says of the model in its card, the README.md of the model folder."""

    licence: str = Field("unknown", pattern=r"^[^\r\n]{1,200}$", description="of the weights, e.g. apache-2.0")
    description: str = Field("", max_length=10_000, description="what the model is")
    intended_use: str = Field("", max_length=10_000, description="what it is for, and what it is not for")


class ModelSpec(Frozen):
    """Inputs -> embeddings."""

    backbone: BackboneSpec = Field(default_factory=SmallCnn)
    dimension: int = Field(128, ge=1, le=65536, description="length of an embedding")
    normalize: bool = Field(True, description="divide embeddings by their L2 norm")
    batch_norm: Literal["per_slice", "synchronised", "group"] = Field(
        "per_slice", description="statistics over a slice (bitwise), over the global batch (exact), or group norm"
    )
    frozen: tuple[str, ...] = Field((), description="parts that do not train: prefixes of parameter names")
    card: CardSpec | None = Field(None, description="licence and words for the model card")


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


# The axes of the mesh that each strategy uses, beside data.
MESH_AXES: dict[str, tuple[str, ...]] = {
    "ddp": (),
    "feature": (),
    "fsdp": ("shard",),
    "tensor": ("tensor",),
    "pipeline": ("pipeline", "tensor"),
    "auto": (),
}


class Sgd(Frozen):
    """Stochastic gradient descent with momentum (torch.optim.SGD)."""

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(0.1, gt=0, description="learning rate")
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(0.0, ge=0)
    parts: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="learning-rate factor by prefix of parameter name; `loss` is the loss's own weights",
    )

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum > 0")
        return self


class Adam(Frozen):
    """Adam (torch.optim.Adam)."""

    kind: Literal["adam"] = "adam"
    lr: float = Field(0.001, gt=0, description="learning rate")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    parts: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="learning-rate factor by prefix of parameter name; `loss` is the loss's own weights",
    )


class AdamW(Adam):
    """Adam with decoupled weight decay (torch.optim.AdamW)."""

    kind: Literal["adamw"] = "adamw"  # type: ignore[assignment]
    weight_decay: float = Field(0.01, ge=0)


OptimizerSpec = Annotated[Sgd | Adam | AdamW, Field(discriminator="kind")]


class ScheduleSpec(Frozen):
    """The learning rate as a pure function of the step."""

    kind: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0, description="linear from lr / warmup_steps up to lr")
    final_factor: float = Field(0.0, ge=0, le=1, description="of lr, reached by cosine at the last step")


class TrainSpec(Frozen):
    """The loop."""

    steps: int = Field(1000, ge=1, description="optimiser steps")
    optimizer: OptimizerSpec = Field(default_factory=AdamW)
    schedule: ScheduleSpec = Field(default_factory=lambda: ScheduleSpec())
    clip_norm: float | None = Field(None, gt=0, description="largest L2 norm of all gradients together")
    loss_limit: float = Field(1e6, gt=0, description="a loss beyond this stops the run as exploded")
    evaluate_every: int = Field(200, ge=0, description="steps between evaluations on validation; 0: never")
    checkpoint_every: int = Field(100, ge=1, description="steps between checkpoints")
    keep_last: int = Field(2, ge=1, description="checkpoints kept besides the best one")
    export: Literal["best", "last"] = Field(
        "best", description="model of the best validation MAP@R, or of the last step"
    )


class EvaluateSpec(Frozen):
    """How the trained model is measured."""

    protocol: Literal["retrieval"] = "retrieval"
    metric: Literal["cosine", "euclidean", "manhattan"] = Field("cosine", description="distance between embeddings")
    baseline: bool = Field(True, description="measure raw inputs beside the model")
    bootstrap: int = Field(
        1000, ge=0, le=100_000, description="resamples behind the intervals of the metrics; 0: no intervals"
    )
    bootstrap_over: Literal["queries", "classes"] = Field(
        "queries", description="what is drawn anew: single queries, or whole classes, whose queries are correlated"
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="part of the resamples that an interval holds")
    clustering: bool = Field(
        False, description="NMI and AMI of k-means with as many clusters as classes; slow for many classes"
    )


class IndexSpec(Frozen):
    """What search serves when the job has succeeded."""

    collection: Name = Field(description="name of the collection")
    metric: Literal["cosine", "l2", "inner_product"] = "cosine"
    split: Literal["train", "validation", "test", "all"] = Field("test", description="which items are indexed")


class RuleBase(Frozen):
    """What a broken rule does, and after how many watched steps; a word alone is the action."""

    action: Literal["warn", "stop", "off"] = Field("warn", description="tell of it, end the run, or do not look")
    patience: int = Field(1, ge=1, le=100_000, description="watched steps in a row that must break the rule")

    @model_validator(mode="before")
    @classmethod
    def _a_word_is_the_action(cls, value: Any) -> Any:
        return {"action": value} if isinstance(value, str | bool) else value

    @field_validator("action", mode="before")
    @classmethod
    def _yaml_reads_off_as_false(cls, value: Any) -> Any:
        return "off" if value is False else value


class CollapseRule(RuleBase):
    """Embeddings of different images are about one point, or lie on one line."""

    rank: float = Field(
        3.0, ge=0, le=65536, description="broken below this effective rank, or half of the most that a batch can have"
    )
    spread: float = Field(
        0.01, ge=0, lt=1, description="broken below this root mean square distance to the mean, over that to 0"
    )


class NoSignalRule(RuleBase):
    """The loss has no gradient: every tuple is solved, or the miner finds none."""

    patience: int = Field(3, ge=1, le=100_000, description="watched steps in a row that must break the rule")
    share: float = Field(1.0, gt=0, le=1, description="broken from this share of rows without gradient on")


class DeadProxiesRule(RuleBase):
    """Classes whose proxies are nearest to no row, though their own rows came by."""

    patience: int = Field(10, ge=1, le=100_000, description="watched steps in a row that must break the rule")
    share: float = Field(0.8, ge=0, lt=1, description="broken above this share of the classes that came by")
    batches: int = Field(10, ge=1, le=10_000, description="watched batches that are looked at together")


class ExplodingNormsRule(RuleBase):
    """Rows grow without bound."""

    norm: float = Field(1e4, gt=0, description="broken above this L2 norm of a row, before normalisation")


class GapNegativeRule(RuleBase):
    """Pairs of one class are less similar than pairs of two."""

    patience: int = Field(3, ge=1, le=100_000, description="watched steps in a row that must break the rule")
    gap: float = Field(0.0, ge=-2, le=2, description="broken below this gap of mean cosine similarities")


class RulesSpec(Frozen):
    """When a run is not healthy."""

    collapse: CollapseRule = Field(default_factory=lambda: CollapseRule())
    no_signal: NoSignalRule = Field(default_factory=lambda: NoSignalRule())
    dead_proxies: DeadProxiesRule = Field(default_factory=lambda: DeadProxiesRule())
    exploding_norms: ExplodingNormsRule = Field(default_factory=lambda: ExplodingNormsRule())
    gap_negative: GapNegativeRule = Field(default_factory=lambda: GapNegativeRule())


class WatchSpec(Frozen):
    """The run's health, measured from what a step has computed; it changes no bit of training."""

    every: int = Field(50, ge=0, description="steps between measurements; 0: never")
    rules: RulesSpec = Field(default_factory=lambda: RulesSpec())


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
        """The level of DESIGN's first promise that this spec reaches; compressed: the same bits of a rounded sum."""
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
        kept, measured and said; nor the strategy and its mesh, which load each other's checkpoints: they round
        differently, and a run records its level.
        """
        beside = {"name": True, "evaluate": True, "watch": True, "index": True}
        document = self.model_dump(mode="json", exclude=beside)
        del document["model"]["card"]
        for name in ("min", "max", "cpus", "memory"):
            del document["parallel"]["workers"][name]
        for name in ("memory", "exchange", "balance", "patience", "tolerate"):
            del document["parallel"][name]  # the same bits
        for name in ("strategy", "mesh", "offload", "pipeline"):
            del document["parallel"][name]
        for name in ("loader_processes", "path"):
            document["data"].pop(name, None)
        (document["data"].get("text") or {}).pop("path", None)
        for name in ("evaluate_every", "checkpoint_every", "keep_last", "export"):
            del document["train"][name]
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
