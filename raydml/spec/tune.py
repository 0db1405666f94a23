"""A study: which fields of a spec vary and how, by which rules trials are chosen and stopped, and what is the best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator
from typing_extensions import TypeAliasType

from raydml.spec.base import Frozen

Bounds = tuple[float, float]
Integers = tuple[int, int]
Steps = Annotated[int, Field(ge=1, description="distance of neighbouring values, from the lower bound on")]
Path = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$", max_length=200)]

# Equal for all configurations: what is measured, how and when, and on what.
FIXED = ("name", "seed", "tune", "evaluate", "index", "watch")
FIXED_PARTS = ("train.steps", "train.evaluate_every", "train.checkpoint_every", "train.keep_last", "train.export")


class UniformRange(Frozen):
    """A number between two bounds, all alike."""

    uniform: Bounds = Field(description="lower and upper bound")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.uniform)
        return self


class LogRange(Frozen):
    """A number between two bounds, all orders of magnitude alike."""

    loguniform: Bounds = Field(description="lower and upper bound, both above 0")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.loguniform)
        if self.loguniform[0] <= 0:
            raise ValueError(f"loguniform has no logarithm of {self.loguniform[0]:g}: begin above 0, or choose uniform")
        return self


class IntegerRange(Frozen):
    """A whole number between two bounds, both included."""

    int: Integers = Field(description="lower and upper bound")
    step: Steps = 1

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.int)
        return self

    def values(self) -> range:
        """All of them."""
        return range(self.int[0], self.int[1] + 1, self.step)


class Choice(Frozen):
    """One of these; a mapping is a whole part of the spec, whose fields may vary in turn."""

    choice: list[Node] = Field(min_length=1, max_length=1000, description="the alternatives")


def _kind(value: Any) -> str:
    """Which form a value of the space has; the sign keeps it apart from keys of a document."""
    if isinstance(value, Frozen):
        return f"={next(iter(type(value).model_fields))}"
    if isinstance(value, Mapping):
        return f"={next((word for word in ('uniform', 'loguniform', 'int', 'choice') if word in value), 'part')}"
    return "=list" if isinstance(value, list | tuple) else "=value"


Vary = (
    Annotated[UniformRange, Tag("=uniform")]
    | Annotated[LogRange, Tag("=loguniform")]
    | Annotated[IntegerRange, Tag("=int")]
    | Annotated[Choice, Tag("=choice")]
)
Domain = Annotated[Vary, Discriminator(_kind)]
if TYPE_CHECKING:
    Node = Any  # mypy knows no alias that holds itself
else:
    Node = TypeAliasType(
        "Node",
        Annotated[
            Vary
            | Annotated[dict[str, "Node"], Tag("=part")]
            | Annotated[list["Node"], Tag("=list")]
            | Annotated[bool | int | float | str | None, Tag("=value")],
            Discriminator(_kind),
        ],
    )
Choice.model_rebuild()


class Random(Frozen):
    """Each configuration drawn by itself, by the study's seed."""

    kind: Literal["random"] = "random"


class Grid(Frozen):
    """All combinations of choices and whole numbers."""

    kind: Literal["grid"] = "grid"


class Tpe(Frozen):
    """Tree-structured Parzen estimator (Bergstra et al. 2011) of Optuna: draws near what was good."""

    kind: Literal["tpe"] = "tpe"
    startup: int = Field(5, ge=1, le=1000, description="configurations drawn at random before it learns from any")


class Pbt(Frozen):
    """Population based training (Jaderberg et al. 2017), in generations: the worst go on from copies of the best."""

    kind: Literal["pbt"] = "pbt"
    every: int | None = Field(None, ge=1, description="steps of a generation; default: train.evaluate_every")
    share: float = Field(0.25, gt=0, le=0.5, description="of the population: so many copy, and so many are copied")
    resample: float = Field(0.25, ge=0, le=1, description="chance that a copied value is drawn anew, not only moved")
    factor: float = Field(1.2, gt=1, le=10, description="a copied number is multiplied or divided by it")


AlgorithmSpec = Annotated[Random | Grid | Tpe | Pbt, Field(discriminator="kind")]


class ToTheEnd(Frozen):
    """Every trial takes all its steps."""

    kind: Literal["none"] = "none"


class Asha(Frozen):
    """Asynchronous successive halving (Li et al. 2020): the best of a rung go on, as soon as they are known."""

    kind: Literal["asha"] = "asha"
    grace: int | None = Field(None, ge=1, description="steps that each trial gets; default: train.evaluate_every")
    factor: int = Field(3, ge=2, le=16, description="one in so many goes on from a rung, to so many times its steps")


class Hyperband(Frozen):
    """Hyperband (Li et al. 2018): brackets of successive halving that begin with ever more steps for ever fewer."""

    kind: Literal["hyperband"] = "hyperband"
    grace: int | None = Field(None, ge=1, description="fewest steps of a trial; default: train.evaluate_every")
    factor: int = Field(3, ge=2, le=16, description="one in so many goes on from a rung, to so many times its steps")


SchedulerSpec = Annotated[ToTheEnd | Asha | Hyperband, Field(discriminator="kind")]


class TuneSpec(Frozen):
    """A search over fields of this spec; what the space does not name is as the spec says."""

    space: dict[Path, Domain] = Field(
        min_length=1,
        max_length=64,
        description="dotted field -> {uniform: [low, high]}, {loguniform: [low, high]}, {int: [low, high], step: 1} or "
        "{choice: [...]}, whose alternatives may be whole parts with spaces inside",
    )
    algorithm: AlgorithmSpec = Field(default_factory=lambda: Random(), description="how configurations are chosen")
    scheduler: SchedulerSpec = Field(default_factory=lambda: ToTheEnd(), description="how long each of them trains")
    trials: int = Field(12, ge=1, le=100_000, description="configurations; pbt: the population")
    seeds: int = Field(1, ge=1, le=100, description="trials of each configuration, with the same seeds for all")
    protocol: Literal["validation", "reality_check"] = Field(
        "validation",
        description="what trials are compared by: the data's validation classes, or reality_check (Musgrave et al. "
        "2020): a model for each fold of all classes but those of test, and the mean of their scores",
    )
    folds: int = Field(
        4, ge=2, le=20, description="of reality_check: parts of these classes, of which each validates one model"
    )
    objective: Literal["map_at_r", "r_precision", "precision_at_1", "recall_at_1", "recall_at_10"] = Field(
        "map_at_r", description="what is best, measured on validation classes only"
    )
    cost: Literal["seconds", "bytes"] | None = Field(
        None,
        description="a second objective, to be small: seconds of a trial's steps, or bytes of the model's weights (of "
        "what is sent nothing is known: most trials are one process); the result shows the Pareto front",
    )
    concurrency: int | None = Field(None, ge=1, le=1024, description="trials at once; default: as many as fit")
    budget_seconds: float | None = Field(
        None, gt=0, description="after so many seconds no trial goes on, and the best so far wins"
    )
    gpu_share: float = Field(1.0, gt=0, le=1, description="of a GPU for each trial, where the cluster has GPUs")

    @property
    def models(self) -> int:
        """Trials of each configuration: one per seed, and per fold of these classes."""
        return self.seeds * (self.folds if self.protocol == "reality_check" else 1)

    @model_validator(mode="after")
    def _folds_are_of_a_protocol(self) -> Self:
        if self.folds != 4 and self.protocol != "reality_check":
            raise ValueError(f"folds: {self.folds} belongs to protocol: reality_check, and this is {self.protocol}")
        return self

    @model_validator(mode="after")
    def _fields_may_vary(self) -> Self:
        for field in self.space:
            if field.split(".")[0] in FIXED or field in FIXED_PARTS:
                raise ValueError(
                    f"space: {field} is the same for all trials, or they could not be compared: leave it out"
                )
            if field.split(".")[0] == "data" and not field.startswith("data.augment"):
                raise ValueError(f"space: {field} would change what is measured: of data only data.augment may vary")
            if field == "loss.kind":
                raise ValueError(
                    "space: a margin belongs to its loss: write loss: {choice: [{kind: triplet, margin: ...}, ...]}"
                )
            if field == "train":
                raise ValueError("space: train holds steps and evaluations too: name its fields, as train.optimizer")
        return self

    @model_validator(mode="after")
    def _no_field_is_named_twice(self) -> Self:
        for field in self.space:
            for other in self.space:
                if field.startswith(f"{other}."):
                    raise ValueError(
                        f"space: {field} lies within {other}, which varies as a whole: write it into the alternatives "
                        f"of {other}"
                    )
        return self

    @model_validator(mode="after")
    def _rules_go_together(self) -> Self:
        if self.algorithm.kind == "pbt":
            if self.scheduler.kind != "none" or self.models > 1:
                raise ValueError(
                    f"algorithm: pbt decides by itself who goes on, and its members learn from each other: it goes "
                    f"with scheduler: none, seeds: 1 and protocol: validation, not with {self.scheduler.kind}, "
                    f"{self.seeds} and {self.protocol}"
                )
            if self.trials < 2:
                raise ValueError("algorithm: pbt needs a population: trials: 2 or more")
        return self


def _check_order(bounds: tuple[float, float]) -> None:
    if bounds[0] > bounds[1]:
        raise ValueError(f"the lower bound {bounds[0]:g} is above the upper one {bounds[1]:g}: turn them round")
