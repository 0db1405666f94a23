"""Rows of class vectors, cut into V shards that lie where Group.owned puts them, with the state of their optimiser.

A shard has the same classes, the same shape and the same arithmetic on whatever worker it lies. It begins as the seed
and its index say, and is a part of a checkpoint of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from raydml.losses.heads.optimizer import Slots, build_optimizer
from raydml.losses.heads.sampling import sampled
from raydml.parallel import Group, key
from raydml.spec import OptimizerSpec


@dataclass(frozen=True)
class Home:
    """Where class rows live, and how they learn: `rate` is their learning rate at a step."""

    group: Group
    device: torch.device
    optimizer: OptimizerSpec
    rate: Callable[[int], float]


@dataclass(frozen=True)
class Shards:
    """C classes in V shards of ceil(C / V): the last ones may be short, or hold none."""

    num_classes: int
    num_shards: int

    @property
    def size(self) -> int:
        """Classes of a full shard."""
        return -(-self.num_classes // self.num_shards)

    def classes(self, index: int) -> range:
        """The classes of a shard."""
        first = min(index * self.size, self.num_classes)
        return range(first, min(first + self.size, self.num_classes))

    def within(self, labels: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Rows of a batch whose class lies in the shard, and the place of the class there."""
        classes = self.classes(index)
        (rows,) = ((labels >= classes.start) & (labels < classes.stop)).nonzero(as_tuple=True)
        return rows, labels[rows] - classes.start


@dataclass(frozen=True)
class Rows:
    """What a step compares with in a shard: all of its rows as they lie there, or copies of some, up to date.

    `places` (m,) are those of the copies in the shard, ascending; `vectors` and each slot are (m, numbers).
    """

    index: int
    places: Tensor | None
    vectors: Tensor
    slots: Slots


class ClassTable:
    """The class vectors of one loss, (numbers,) for each class; `spread` is the standard deviation they start with."""

    def __init__(
        self,
        num_classes: int,
        numbers: int,
        spread: float,
        sample_rate: float,
        seed: int,
        dtype: torch.dtype,
        home: Home,
    ) -> None:
        self.home, self.group = home, home.group
        self.shards = Shards(num_classes, home.group.num_slices)
        self._numbers, self._spread, self._sample_rate = numbers, spread, sample_rate
        self._seed, self._dtype = seed, dtype
        self.optimizer = build_optimizer(home.optimizer)
        self._held: dict[int, dict[str, Tensor]] = {}

    def shard(self, index: int) -> dict[str, Tensor]:
        """A shard by name, live: `vectors`, the optimiser's slots, and how many `updates` each class has had."""
        if index not in self._held:
            assert index in self.group.owned, f"shard {index} lies on another worker"
            self._held[index] = self._fresh(index)
        return self._held[index]

    def _fresh(self, index: int) -> dict[str, Tensor]:
        count = len(self.shards.classes(index))
        generator = torch.Generator().manual_seed(key("class rows", self._seed, index))
        vectors = torch.empty(count, self._numbers, dtype=self._dtype).normal_(0, self._spread, generator=generator)
        slots = {name: torch.zeros_like(vectors) for name in self.optimizer.names}
        part = {"vectors": vectors, **slots, "updates": torch.zeros(count, dtype=torch.long)}
        return {name: value.to(self.home.device) for name, value in part.items()}

    def rows(self, index: int, labels: Tensor, step: int) -> Rows:
        """What a step with these labels (B,) compares with; it changes nothing."""
        part = self.shard(index)
        if self._sample_rate == 1:
            return Rows(index, None, part["vectors"], {name: part[name] for name in self.optimizer.names})
        _, own = self.shards.within(labels, index)
        places = sampled(self.shards.classes(index), own, self._sample_rate, self._seed, step)
        vectors, slots = part["vectors"][places], {name: part[name][places] for name in self.optimizer.names}
        self.optimizer.catch_up(vectors, slots, part["updates"][places], step, self.home.rate)
        return Rows(index, places, vectors, slots)

    def update(self, rows: Rows, gradient: Tensor, step: int) -> None:
        """One update of the rows by dL/d(vectors), (m, numbers)."""
        if not len(gradient):
            return
        part = self.shard(rows.index)
        if rows.places is None:
            count = int(part["updates"][0])  # steps that overflowed float16 are none
            self.optimizer.step(rows.vectors, rows.slots, gradient, count, self.home.rate(step))
            part["updates"] += 1
            return
        self.optimizer.step(rows.vectors, rows.slots, gradient, step, self.home.rate(step))
        for name, value in {"vectors": rows.vectors, **rows.slots}.items():
            part[name][rows.places] = value
        part["updates"][rows.places] = step + 1
