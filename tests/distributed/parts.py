"""States that no worker holds whole: class centres on their owners, and a layer whose rows are cut over the workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raydml.losses import Objective
from raydml.parallel import Group
from raydml.spec import JobSpec
from raydml.training import loop

WEIGHT = 0.02


class HeldCenters:
    """One centre a class, a shard of ceil(C / V) classes for each slice; each moves with the mean of its class's rows,
    with momentum. What a worker holds is made where it is first asked for."""

    def __init__(self, num_classes: int, dimension: int, num_slices: int) -> None:
        self.rows, self.dimension = -(-num_classes // num_slices), dimension
        self.shards: dict[int, dict[str, Tensor]] = {}

    def shard(self, index: int) -> dict[str, Tensor]:
        """The centres of some classes and their velocities, (rows, D) each."""
        if index not in self.shards:
            centers = torch.randn(self.rows, self.dimension, generator=torch.Generator().manual_seed(index))
            self.shards[index] = {"centers": centers, "velocity": torch.zeros_like(centers)}
        return self.shards[index]

    def whole(self, group: Group) -> Tensor:
        """The centres of all classes, (V x rows, D), on every worker."""
        return group.gather_slices(torch.cat([self.shard(index)["centers"] for index in group.owned]))

    def move(self, embeddings: Tensor, labels: Tensor, group: Group) -> None:
        """The own centres take a step."""
        for index in group.owned:
            shard = self.shard(index)
            for row in range(self.rows):
                own = embeddings[labels == index * self.rows + row]
                if len(own):
                    shard["velocity"][row] = 0.5 * shard["velocity"][row] + 0.2 * (own.mean(0) - shard["centers"][row])
                    shard["centers"][row] += shard["velocity"][row]


class CentersObjective(Objective):
    """The loss of the spec, and the distance of every embedding to the centre of its class."""

    group: Group

    def __init__(self, spec: Any, **options: Any) -> None:
        super().__init__(spec, **options)
        self.held = HeldCenters(options["num_classes"], options["dimension"], 8)
        self.sharded = {"centers": self.held}

    def measure(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """As the real one; every worker computes the whole loss."""
        loss, statistics = super().measure(embeddings, labels)
        centers = self.held.whole(self.group)[labels]
        return loss + WEIGHT * (embeddings - centers).square().sum(1).mean(), statistics

    def commit(self, embeddings: Tensor, labels: Tensor, *head: Any) -> None:
        """As the real one."""
        super().commit(embeddings, labels, *head)
        self.held.move(embeddings.detach(), labels, self.group)


@dataclass(frozen=True)
class HoldCenters:
    """Every job of this process has such an objective."""

    def arm(self) -> None:
        """Put it into this process."""
        build = loop.Trainer.__init__

        def with_group(trainer: loop.Trainer, spec: Any, dataset: Any, model: Any, group: Group, device: Any) -> None:
            CentersObjective.group = group
            build(trainer, spec, dataset, model, group, device)

        loop.Trainer.__init__ = with_group  # type: ignore[method-assign]
        loop.Objective = CentersObjective  # type: ignore[misc]
        JobSpec.state = property(lambda spec: "sharded")  # type: ignore[assignment,method-assign]


class CutRows:
    """A `Spread`: of each tensor of the model, (V x S, ...), a worker holds the rows of its slices."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """All rows, on the first worker."""
        gathered = {
            name: self.group.gather_slices(value) if value.dim() else value for name, value in sorted(tensors.items())
        }
        return gathered if self.group.rank == 0 else {}

    def local(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The own rows."""
        return {
            name: self._own(value) if name.split(".")[0] != "objective" else value for name, value in tensors.items()
        }

    def _own(self, value: Tensor) -> Tensor:
        if not value.dim():
            return value
        size = len(value) // self.group.num_slices
        return value[self.group.owned.start * size : self.group.owned.stop * size]


def cut_layer(group: Group) -> nn.Module:
    """A linear layer of 16 rows, of which this worker holds its own; the same weights for any workers."""
    whole = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    layer = nn.Linear(4, 2 * len(group.owned), bias=False)
    layer.weight = nn.Parameter(whole[2 * group.owned.start : 2 * group.owned.stop].clone())
    return layer
