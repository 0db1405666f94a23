"""The objective: embeddings and labels of a whole global batch in, one number out, with weights of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from raydml import catalogue
from raydml.catalogue import LossSpec
from raydml.losses.build import build_loss, build_miner, build_regularizer
from raydml.losses.centers import CenterLoss
from raydml.losses.cross_batch import CrossBatchTerm
from raydml.losses.randomness import fresh_weights
from raydml.losses.textbook import ContrastiveLoss, TripletLoss
from raydml.losses.tiled import TiledLoss, tiled_form
from raydml.parallel import Sharded

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


def build_term(spec: LossSpec, num_classes: int, dimension: int) -> nn.Module:
    """The main term of the loss: (B, D), (B,) -> (loss, statistics)."""
    if isinstance(spec, catalogue.TextbookContrastive):
        return ContrastiveLoss(spec)
    if isinstance(spec, catalogue.TextbookTriplet):
        return TripletLoss(spec)
    if isinstance(spec, catalogue.Center):
        return CenterLoss(spec, num_classes, dimension)
    term = PmlTerm(spec, num_classes, dimension)
    memory = getattr(spec, "memory", None)
    return term if memory is None else CrossBatchTerm(term, memory, dimension)


class Objective(nn.Module):
    """A loss over one gathered global batch, the same on every worker.

    Small batches: every worker computes the whole loss on embeddings gathered in slice order, so every entry of the
    catalogue is exact by construction. From `TILED_FROM` rows on a loss that has a tiled form runs in tiles (`tiled`),
    each worker with its share; `measure` is then what is left: center loss and penalties.
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
    ) -> None:
        super().__init__()
        self.dtype = torch.float64 if dtype == torch.float64 else torch.float32  # never below float32
        term = None if isinstance(spec, catalogue.Center) else spec.center
        with fresh_weights(seed):
            self.term = build_term(spec, num_classes, dimension)
            self.center = None if term is None else CenterLoss(term, num_classes, dimension)
        self.center_weight = 0.0 if term is None else term.weight
        self.tiled: TiledLoss | None = None
        if batch_size >= TILED_FROM and isinstance(self.term, PmlTerm):
            self.tiled = tiled_form(spec, self.term.loss)
        self.sharded: dict[str, Sharded] = {}  # what no worker holds whole, by name
        self.to(self.dtype)
        # Losses that keep something (weights, centres, a memory) want class numbers; the others only compare labels.
        self.num_classes = num_classes if self.state_dict() else None

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

    def commit(self, embeddings: Tensor, labels: Tensor) -> None:
        """Move what moves without gradients, centres and memory; called once, and only when the step commits."""
        for module in self.modules():
            if isinstance(module, CenterLoss | CrossBatchTerm):
                module.move(embeddings.detach(), labels)
