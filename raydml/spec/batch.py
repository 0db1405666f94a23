"""The global batch: which classes meet in it, and how it is cut."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raydml.spec.base import Frozen


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
