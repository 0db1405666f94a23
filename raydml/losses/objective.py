"""The objective: embeddings and labels of a whole global batch in, one number out, with weights of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from raydml import catalogue
from raydml.catalogue import LossSpec
from raydml.errors import SpecError
from raydml.losses.build import build_loss, build_miner, build_regularizer
from raydml.losses.centers import CenterLoss
from raydml.losses.cross_batch import CrossBatchTerm
from raydml.losses.heads import ClassHead, HeadStep, Home, build_head
from raydml.losses.heads.centers import ShardedCenterLoss
from raydml.losses.randomness import fresh_weights
from raydml.losses.textbook import ContrastiveLoss, TripletLoss
from raydml.losses.tiled import TiledLoss, tiled_form
from raydml.parallel import Sharded
from raydml.plugins import plugged

TILED_FROM = 1024  # rows; below, the whole loss on every worker costs less than the tiles' overhead


class PmlTerm(nn.Module):
    """A loss of pytorch-metric-learning with its miner and penalties: (B, D), (B,) -> (loss, statistics)."""

    def __init__(self, spec: Any, num_classes: int, dimension: int) -> None:
        super().__init__()
        self.loss = build_loss(spec, num_classes, dimension)
        miner = getattr(spec, "miner", None)
        self.miner = None if miner is None else build_miner(miner, self.loss.distance)
        self.penalties = nn.ModuleDict()
        self.factors: dict[str, float] = {}
        for name in ("regularizer", "weight_regularizer"):
            entry = getattr(spec, name, None)
            if entry is not None:
                self.penalties[name] = build_regularizer(entry, self.loss)
                self.factors[name] = entry.weight

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The loss, shape (); `tuples` counts what the miner chose, triplets or pairs."""
        loss, statistics = self._mined(embeddings, labels)
        return self.penalise(loss.reshape(()), embeddings), statistics

    def penalise(self, loss: Tensor, embeddings: Tensor) -> Tensor:
        """The loss with its penalties added."""
        for name, penalty in self.penalties.items():
            rows = embeddings if name == "regularizer" else self._weight_rows()
            loss = loss + (self.factors[name] * penalty(rows)).reshape(())
        return loss

    def _mined(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        if self.miner is None:
            return self.loss(embeddings, labels), {}
        indices = self.miner(embeddings, labels)
        count = sum(len(part) for part in indices[::2]) if len(indices) == 4 else len(indices[0])
        if count == 0:  # PML would weigh every row fully where a miner only weighs rows
            return embeddings.sum() * 0, {"tuples": 0.0}
        return self.loss(embeddings, labels, indices), {"tuples": float(count)}

    def _weight_rows(self) -> Tensor:
        """The loss's weights with one class or centre a row."""
        weights: Tensor = next(self.loss.parameters())
        return weights if hasattr(self.loss, "proxies") else weights.T


class PluginTerm(nn.Module):
    """A loss of somebody else's: (B, D), (B,) -> (loss, {})."""

    def __init__(self, spec: catalogue.CustomLoss, num_classes: int, dimension: int) -> None:
        super().__init__()
        self.name = spec.plugin
        self.loss = plugged("losses", spec.plugin, num_classes=num_classes, dimension=dimension)

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The loss, shape (). Raises SpecError where the plug-in gives something else."""
        loss = self.loss(embeddings, labels)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise SpecError(f"the plug-in {self.name} gives {shape}: a loss is one number, a tensor of shape ()")
        return loss.reshape(()), {}


class Penalty(nn.Module):
    """What a class-parallel head leaves to the batch alone, its penalty on embeddings: (B, D), (B,) -> (loss, {})."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        entry = getattr(spec, "regularizer", None)
        self.penalty = None if entry is None else build_regularizer(entry, None)
        self.factor = 0.0 if entry is None else entry.weight

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The penalty, shape ()."""
        if self.penalty is None:
            return embeddings.new_zeros(()), {}
        return (self.factor * self.penalty(embeddings)).reshape(()), {}


def build_term(spec: LossSpec, num_classes: int, dimension: int) -> nn.Module:
    """The main term of the loss: (B, D), (B,) -> (loss, statistics)."""
    if isinstance(getattr(spec, "class_parallel", None), catalogue.ClassParallel):
        return Penalty(spec)
    if isinstance(spec, catalogue.TextbookContrastive):
        return ContrastiveLoss(spec)
    if isinstance(spec, catalogue.TextbookTriplet):
        return TripletLoss(spec)
    if isinstance(spec, catalogue.CustomLoss):
        return PluginTerm(spec, num_classes, dimension)
    term = PmlTerm(spec, num_classes, dimension)
    memory = getattr(spec, "memory", None)
    return term if memory is None else CrossBatchTerm(term, memory, dimension)


def build_center(
    spec: catalogue.Center | catalogue.CenterTerm,
    num_classes: int,
    dimension: int,
    dtype: torch.dtype,
    home: Home | None,
) -> CenterLoss:
    """The center loss with all centres on every worker, or each at home."""
    if not spec.class_parallel:
        return CenterLoss(spec, num_classes, dimension)
    assert home is not None, "class_parallel needs to know where classes live"
    return ShardedCenterLoss(spec, num_classes, dimension, dtype, home.device, home.group)


class Objective(nn.Module):
    """A loss over one gathered global batch, the same on every worker.

    Small batches: every worker computes the whole loss on embeddings gathered in slice order, so every entry of the
    catalogue is exact by construction. From `TILED_FROM` rows on a loss that has a tiled form runs in tiles (`tiled`),
    each worker with its share; `measure` is then what is left: center loss and penalties. So it is with a
    class-parallel `head`, whose class vectors live at `home`, each on its owner.
    """

    def __init__(
        self,
        spec: LossSpec,
        *,
        num_classes: int,
        dimension: int,
        seed: int,
        dtype: torch.dtype,
        batch_size: int = 0,
        home: Home | None = None,
    ) -> None:
        super().__init__()
        self.dtype = torch.float64 if dtype == torch.float64 else torch.float32  # never below float32
        term = None if isinstance(spec, catalogue.Center) else spec.center
        with fresh_weights(seed):
            if isinstance(spec, catalogue.Center):
                self.term: nn.Module = build_center(spec, num_classes, dimension, self.dtype, home)
            else:
                self.term = build_term(spec, num_classes, dimension)
            self.center = None if term is None else build_center(term, num_classes, dimension, self.dtype, home)
        self.head: ClassHead | None = None
        if isinstance(self.term, Penalty):
            assert home is not None, "class_parallel needs to know where classes live"
            self.head = build_head(
                spec, num_classes=num_classes, dimension=dimension, seed=seed, dtype=self.dtype, home=home
            )
        self.center_weight = 0.0 if term is None else term.weight
        self.tiled: TiledLoss | None = None
        if batch_size >= TILED_FROM and isinstance(self.term, PmlTerm):
            self.tiled = tiled_form(spec, self.term.loss)
        self.sharded: dict[str, Sharded] = {}  # what no worker holds whole, by name
        if self.head is not None:
            self.sharded["head"] = self.head.table
        for module in (self.term, self.center):
            if isinstance(module, ShardedCenterLoss):
                self.sharded["centers"] = module
        self.to(self.dtype)
        # Losses that keep something (weights, centres, a memory) want class numbers; the others only compare labels.
        self.num_classes = num_classes if self.state_dict() or self.sharded else None

    def travels(self, slice_size: int) -> bool:
        """Whether no worker needs all rows: the loss travels in tiles, and nothing beside it looks at embeddings."""
        if self.tiled is None or self.center is not None or "regularizer" in getattr(self.term, "penalties", ()):
            return False
        return self.tiled.travels(slice_size)

    def measure(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The loss but for what runs in tiles, shape (), of embeddings (B, D) and labels (B,), and cheap statistics."""
        embeddings = embeddings.to(self.dtype)
        with torch.autocast(embeddings.device.type, enabled=False):
            if self.tiled is not None:
                assert isinstance(self.term, PmlTerm)
                loss, statistics = self.term.penalise(embeddings.new_zeros(()), embeddings), {}
            else:
                loss, statistics = self.term(embeddings, labels)
            if self.center is not None:
                loss = loss + self.center_weight * self.center(embeddings, labels)[0]
        return loss, statistics

    def forward(self, embeddings: Tensor, labels: Tensor, step: int) -> Tensor:
        """The loss, shape (); `step` is for objectives that change with it, and none of the catalogue does.

        Losses and miners that draw at random use the global generators: `evaluate_objective` keys and restores them.
        """
        loss, _ = self.measure(embeddings, labels)
        return loss

    def commit(self, embeddings: Tensor, labels: Tensor, head: HeadStep | None = None, step: int = 0) -> None:
        """Move what is not the optimiser's: centres, memory, a head's class vectors with `head` of this step's verdict.

        Called once, and only when the step commits.
        """
        if self.head is not None and head is not None:
            self.head.commit(head, step)
        for module in self.modules():
            if isinstance(module, CenterLoss | CrossBatchTerm):
                module.move(embeddings.detach(), labels)
