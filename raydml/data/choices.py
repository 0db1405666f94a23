"""The classes that may be drawn in; the P classes of global batch t out, a pure function of (seed, t).

`CHOICES` names one choice for each kind of `batch.sampling`. None of them needs another step's batch, and what is
random comes from the stateless streams of `raydml.data.randomness` (SplitMix64).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from raydml.data.randomness import drawn, exponentials, permutation, smallest, stream_key
from raydml.errors import DataError
from raydml.spec import BatchSpec, HardClasses, Hierarchical


@dataclass(frozen=True, eq=False)
class Candidates:
    """The C classes that a batch may hold."""

    numbers: NDArray[np.int64]  # (C,) dense labels, ascending
    counts: NDArray[np.int64]  # (C,) training items of each
    categories: tuple[str, ...]  # of each, or empty where nobody asked


class Choice(Protocol):
    """Chooses classes; made of (candidates, batch, seed)."""

    def classes(self, step: int) -> NDArray[np.int64]:
        """(P,) different dense labels."""


class Passes:
    """Uniform: a pass is a permutation keyed by (seed, pass), cut into floor(C / P) batches; the rest is left out."""

    def __init__(self, candidates: Candidates, batch: BatchSpec, seed: int) -> None:
        self.numbers, self.size, self.seed = candidates.numbers, batch.classes, seed
        self.batches_per_pass = len(self.numbers) // self.size
        self._latest: tuple[int, NDArray[np.int64]] = (-1, self.numbers)

    def classes(self, step: int) -> NDArray[np.int64]:
        """See Choice."""
        number, position = divmod(step, self.batches_per_pass)
        if self._latest[0] != number:
            self._latest = (number, self.numbers[permutation(stream_key(self.seed, "pass", number), len(self.numbers))])
        return self._latest[1][position * self.size : (position + 1) * self.size]


WEIGHTS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "frequency": lambda counts: counts,
    "sqrt_frequency": np.sqrt,
}


class Weighted:
    """P draws without replacement, each with probability w / (sum of the weights still there).

    The P smallest of -ln(u) / w are such draws in order (Efraimidis and Spirakis, Inf. Process. Lett. 97, 2006).
    """

    def __init__(self, candidates: Candidates, batch: BatchSpec, seed: int) -> None:
        self.numbers, self.size, self.seed = candidates.numbers, batch.classes, seed
        self.weights = WEIGHTS[batch.sampling.kind](candidates.counts.astype(np.float64))  # (C,)

    def classes(self, step: int) -> NDArray[np.int64]:
        """See Choice."""
        waits = exponentials(stream_key(self.seed, "weighted", step), np.arange(len(self.numbers))) / self.weights
        return self.numbers[smallest(waits, self.size)]


class InCategories:
    """G categories, all alike, then P / G classes of each, all alike.

    Class j of the g-th category stands at j * G + g, so that neighbours are of different categories.
    """

    def __init__(self, candidates: Candidates, batch: BatchSpec, seed: int) -> None:
        assert isinstance(batch.sampling, Hierarchical)
        self.seed = seed
        self.num_categories = batch.sampling.categories_per_batch
        self.share = batch.classes // self.num_categories
        names = np.array(candidates.categories)
        members = {name: candidates.numbers[names == name] for name in sorted(set(candidates.categories))}
        small = {name: len(classes) for name, classes in members.items() if len(classes) < self.share}
        if small and batch.sampling.small_categories == "fail":
            raise _too_small(small, len(members), batch)
        self.members = [classes for name, classes in members.items() if name not in small]
        if len(self.members) < self.num_categories:
            raise _too_few(len(self.members), len(members), batch)

    def classes(self, step: int) -> NDArray[np.int64]:
        """See Choice."""
        chosen = drawn(stream_key(self.seed, "categories", step), len(self.members), self.num_categories)
        columns = [self._draw(step, number) for number in chosen.tolist()]
        return np.stack(columns, axis=1).reshape(-1)  # (P / G, G) -> (P,)

    def _draw(self, step: int, number: int) -> NDArray[np.int64]:
        members: NDArray[np.int64] = self.members[number]
        return members[drawn(stream_key(self.seed, "category", step, number), len(members), self.share)]


def _too_small(small: dict[str, int], num_categories: int, batch: BatchSpec) -> DataError:
    name = min(small, key=lambda each: small[each])
    assert isinstance(batch.sampling, Hierarchical)
    return DataError(
        f"batch.sampling takes {batch.classes} / {batch.sampling.categories_per_batch} classes of a category, and "
        f"{len(small)} of {num_categories} categories have fewer, such as {name!r} with {small[name]}: lower "
        f"batch.classes, raise categories_per_batch, or leave them out with small_categories: drop",
        categories=small,
    )


def _too_few(num_large: int, num_categories: int, batch: BatchSpec) -> DataError:
    assert isinstance(batch.sampling, Hierarchical)
    wanted = batch.sampling.categories_per_batch
    return DataError(
        f"batch.sampling.categories_per_batch = {wanted} different categories a batch, but training has "
        f"{num_categories}, of which {num_large} hold at least {batch.classes // wanted} classes: lower "
        f"{'batch.classes' if num_categories >= wanted else 'categories_per_batch'}",
        categories_per_batch=wanted,
        available=num_categories,
        usable=num_large,
    )


class WithNeighbours:
    """Classes in random order, each followed by its nearest ones, until there are P; uniform while none are known.

    neighbours: (C, m) positions in `candidates.numbers`, nearest first; -1 where no more are known. What is chosen is
    shuffled, so that similar classes do not share a slice and its statistics.
    """

    def __init__(self, candidates: Candidates, batch: BatchSpec, seed: int) -> None:
        assert isinstance(batch.sampling, HardClasses)
        self.numbers, self.size, self.seed = candidates.numbers, batch.classes, seed
        self.neighbours = np.full((len(self.numbers), batch.sampling.neighbours), -1)
        self.passes = Passes(candidates, batch, seed)

    def classes(self, step: int) -> NDArray[np.int64]:
        """See Choice."""
        if (self.neighbours < 0).all():
            return self.passes.classes(step)
        chosen: dict[int, None] = {}
        for leader in drawn(stream_key(self.seed, "leaders", step), len(self.numbers), self.size).tolist():
            if leader not in chosen:
                known = self.neighbours[leader]
                chosen |= dict.fromkeys([leader, *known[known >= 0].tolist()])
            if len(chosen) >= self.size:
                break
        order = permutation(stream_key(self.seed, "places", step), self.size)
        places = np.array(list(chosen)[: self.size], np.int64)[order]
        return np.asarray(self.numbers[places])


CHOICES: dict[str, Callable[[Candidates, BatchSpec, int], Choice]] = {
    "uniform": Passes,
    "frequency": Weighted,
    "sqrt_frequency": Weighted,
    "hierarchical": InCategories,
    "hard_classes": WithNeighbours,
}
