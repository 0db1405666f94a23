"""Center loss with the centres of a class on the worker that owns it: rows of the batch's classes travel, no others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raydml.catalogue import Center, CenterTerm
from raydml.losses.centers import CenterLoss
from raydml.losses.heads.table import Shards
from raydml.parallel import Group


class ShardedCenterLoss(CenterLoss):
    """As CenterLoss, with V shards of centres, (classes, D) each, that lie where Group.owned puts them."""

    def __init__(
        self,
        spec: Center | CenterTerm,
        num_classes: int,
        dimension: int,
        dtype: torch.dtype,
        device: torch.device,
        group: Group,
    ) -> None:
        nn.Module.__init__(self)  # not CenterLoss's: no worker holds all centres
        self.spec = spec
        self.shards, self.group = Shards(num_classes, group.num_slices), group
        self._dimension, self._dtype, self._device = dimension, dtype, device
        self._held: dict[int, Tensor] = {}

    def shard(self, index: int) -> dict[str, Tensor]:
        """A shard by name, live: `centers`."""
        if index not in self._held:
            assert index in self.group.owned, f"centres of shard {index} lie on another worker"
            shape = (len(self.shards.classes(index)), self._dimension)
            self._held[index] = torch.zeros(shape, dtype=self._dtype, device=self._device)
        return {"centers": self._held[index]}

    def rows(self, labels: Tensor) -> Tensor:
        """Centres of these classes, (B, D), on every worker: each from its owner, and zeros from the others."""
        found = torch.zeros(len(labels), self._dimension, dtype=self._dtype, device=self._device)
        for index in self.group.owned:
            rows, places = self.shards.within(labels, index)
            found[rows] = self.shard(index)["centers"][places]
        return self.group.all_reduce(found + 0.0)  # one row and zeros: exact in any order

    @torch.no_grad()
    def move(self, embeddings: Tensor, labels: Tensor) -> None:
        """See CenterLoss: the centres of the batch's classes, those of this worker."""
        for index in self.group.owned:
            rows, places = self.shards.within(labels, index)
            centers = self.shard(index)["centers"]
            met, which = torch.unique(places, return_inverse=True)
            centers[met] = self.moved(centers[met], embeddings[rows].to(self._dtype), which)
