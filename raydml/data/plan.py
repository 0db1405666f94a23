"""Training labels and a seed in; which images make up global batch t out, whatever the number of workers.

Which P of the usable classes meet is chosen by `batch.sampling` (raydml.data.choices); by default, in passes over all
classes. Within a class K distinct images are drawn without replacement, keyed by (seed, step, class). A class with
n < K images is left out (`drop`) or gives each image floor(K / n) or ceil(K / n) times (`repeat`). Sample k of the p-th
class stands in row k * P + p, so that a slice, which is a run of consecutive rows, holds as many different classes as
it can.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raydml.data.categories import class_categories
from raydml.data.choices import CHOICES, Candidates, WithNeighbours
from raydml.data.dataset import Dataset
from raydml.data.negatives import exported_neighbours
from raydml.data.randomness import random_bits, stream_key
from raydml.errors import DataError
from raydml.spec import BatchSpec, HardClasses


class SamplingPlan:
    """The order of the data: `batch(step)` is a pure function of (labels, spec, seed, step), no step needs another.

    With hard_classes it is one of the table `neighbours` too, which training refreshes at fixed steps.

    labels: (num_train,) dense training labels 0..C-1; categories: (C,) of each class, for hierarchical sampling alone.
    DataError when fewer than P classes, or too few categories, are usable.
    """

    def __init__(
        self, labels: NDArray[np.int64], batch: BatchSpec, seed: int, categories: tuple[str, ...] = ()
    ) -> None:
        self.spec = batch
        self.seed = seed
        order = np.argsort(labels, kind="stable")
        counts = np.bincount(labels) if len(labels) else np.zeros(0, np.int64)
        self._members = np.split(order, np.cumsum(counts)[:-1]) if len(counts) else []
        fewest = batch.samples if batch.small_classes == "drop" else 1
        usable = np.flatnonzero(counts >= fewest)
        if len(usable) < batch.classes:
            raise _too_few(batch, len(counts), len(usable))
        self.batches_per_pass = len(usable) // batch.classes
        kept = tuple(categories[number] for number in usable) if categories else ()
        self._usable = usable
        self.choice = CHOICES[batch.sampling.kind](Candidates(usable, counts[usable], kept), batch, seed)
        self._latest: tuple[int, NDArray[np.int64]] = (-1, usable)

    def batch(self, step: int) -> NDArray[np.int64]:
        """(B,) positions among the training items, in slice order; read-only."""
        if self._latest[0] != step:  # the V slices of a step are asked for one after another
            rows = np.stack([self._samples(step, number) for number in self.classes(step).tolist()], axis=1)
            rows = rows.reshape(-1)  # (K, P) -> (K * P,)
            rows.setflags(write=False)
            self._latest = (step, rows)
        return self._latest[1]

    def slice(self, step: int, index: int) -> NDArray[np.int64]:
        """(S,) rows [index * S, (index + 1) * S) of `batch(step)`."""
        if not 0 <= index < self.spec.virtual_workers:
            raise IndexError(f"slice {index} of a batch of {self.spec.virtual_workers} slices")
        size = self.spec.slice_size
        return self.batch(step)[index * size : (index + 1) * size]

    def classes(self, step: int) -> NDArray[np.int64]:
        """(P,) the different dense labels of global batch `step`."""
        if step < 0:
            raise IndexError(f"step {step} is negative")
        return self.choice.classes(step)

    @property
    def neighbours(self) -> NDArray[np.int64] | None:
        """(C, m) nearest classes of each usable class, by position among them; None: this sampling knows none."""
        return self.choice.neighbours if isinstance(self.choice, WithNeighbours) else None

    def learn(self, neighbours: NDArray[np.int64]) -> None:
        """Take another table of neighbours for all further batches."""
        assert isinstance(self.choice, WithNeighbours) and neighbours.shape == self.choice.neighbours.shape
        self.choice.neighbours = neighbours
        self._latest = (-1, self._usable)

    def begin_with(self, labels: NDArray[np.int64]) -> None:
        """Take a table of dense training labels, (classes, m), -1 for none; classes that are left out are dropped."""
        places = np.full(len(labels) + 1, -1)  # of -1: -1
        places[self._usable] = np.arange(len(self._usable))
        found = places[labels[self._usable]]
        order = np.argsort(found < 0, axis=1, kind="stable")
        self.learn(np.take_along_axis(found, order, axis=1))

    def examples(self, step: int, count: int) -> list[NDArray[np.int64]]:
        """Up to `count` positions among the training items for each usable class, drawn by (seed, step, class)."""
        return [self._drawn("example", step, number)[:count] for number in self._usable.tolist()]

    def _samples(self, step: int, number: int) -> NDArray[np.int64]:
        """(K,) images of class `number`: the K with the smallest random numbers, smallest first."""
        return np.resize(self._drawn("sample", step, number)[: self.spec.samples], self.spec.samples)

    def _drawn(self, purpose: str, step: int, number: int) -> NDArray[np.int64]:
        """All images of class `number` in random order."""
        members = self._members[number]
        bits = random_bits(stream_key(self.seed, purpose, step, number), np.arange(len(members)))
        return members[np.argsort(bits, kind="stable")]


def sampling_plan(dataset: Dataset, batch: BatchSpec, seed: int) -> SamplingPlan:
    """The plan over the training items of a dataset."""
    sampling = batch.sampling
    categories = class_categories(dataset) if sampling.kind == "hierarchical" else ()
    plan = SamplingPlan(dataset.training_labels, batch, seed, categories)
    if isinstance(sampling, HardClasses) and sampling.negatives is not None:
        plan.begin_with(exported_neighbours(Path(sampling.negatives), dataset, sampling.neighbours))
    return plan


def _too_few(batch: BatchSpec, num_classes: int, num_usable: int) -> DataError:
    need = f"batch.classes = {batch.classes} different classes a batch, but training has {num_classes}"
    way = f"lower batch.classes to {num_usable} or less" if num_usable >= 2 else "add training classes"
    if num_usable < num_classes:
        need += f", of which {num_usable} hold at least batch.samples = {batch.samples} images"
        way += ", lower batch.samples or choose small_classes: repeat"
    return DataError(f"{need}: {way}", classes=batch.classes, available=num_classes, usable=num_usable)
