"""Cross-batch memory (XBM; Wang, Zhang, Huang and Scott, CVPR 2020): past embeddings as further pairs of a batch.

L = L(batch against batch) + weight * L(batch against memory). As in the paper's own code, gradients flow into the batch
alone: the memory is a constant. Unlike pytorch-metric-learning's CrossBatchMemory, which enqueues a batch before it
measures it, the memory holds committed steps only, so that a step that is not committed leaves no trace in it.
"""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning import losses, miners
from torch import Tensor, nn

from raydml.catalogue import MemorySpec


class CrossBatchTerm(nn.Module):
    """A term and a ring of the latest `size` embeddings (size, D) and labels (size,), in slice order.

    term: holds a `loss` of pytorch-metric-learning and its `miner`, or None.
    """

    embeddings: Tensor
    labels: Tensor
    rows: Tensor
    steps: Tensor

    def __init__(self, term: nn.Module, spec: MemorySpec, dimension: int) -> None:
        super().__init__()
        self.term: Any = term
        self.spec = spec
        self.register_buffer("embeddings", torch.zeros(spec.size, dimension))
        self.register_buffer("labels", torch.full((spec.size,), -1))
        self.register_buffer("rows", torch.tensor(0))  # remembered so far, those overwritten among them
        self.register_buffer("steps", torch.tensor(0))  # committed so far

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The loss, shape (); `memory_tuples` counts what the miner chose between batch and memory."""
        loss, statistics = self.term(embeddings, labels)
        count = min(int(self.rows), self.spec.size)
        if count == 0 or int(self.steps) < self.spec.start_step:
            return loss, statistics
        known, known_labels = self.embeddings[:count], self.labels[:count]
        indices = self._tuples(embeddings, labels, known, known_labels)
        if indices is not None:
            chosen = sum(map(len, indices[::2])) if len(indices) == 4 else len(indices[0])
            statistics = statistics | {"memory_tuples": float(chosen)}
            if chosen == 0:
                return loss, statistics
        against = self.term.loss(embeddings, labels, indices, known, known_labels)
        return loss + self.spec.weight * against.reshape(()), statistics

    def _tuples(
        self, embeddings: Tensor, labels: Tensor, known: Tensor, known_labels: Tensor
    ) -> tuple[Tensor, ...] | None:
        """Rows of the batch and of the memory that meet; None: all pairs, or what the loss itself draws."""
        loss, miner = self.term.loss, self.term.miner
        if isinstance(miner, miners.TripletMarginMiner):
            return chosen_triplets(miner, embeddings, labels, known, known_labels)
        if miner is not None:
            mined: tuple[Tensor, ...] = miner(embeddings, labels, known, known_labels)
            return mined
        of_triplets = isinstance(loss, losses.TripletMarginLoss | losses.MarginLoss)
        return triplets_between(labels, known_labels) if of_triplets and loss.triplets_per_anchor == "all" else None

    @torch.no_grad()
    def move(self, embeddings: Tensor, labels: Tensor) -> None:
        """Remember a whole global batch, (B, D) and (B,), in place of the oldest rows."""
        assert len(labels) <= self.spec.size, f"a memory of {self.spec.size} rows cannot hold a batch of {len(labels)}"
        places = (self.rows + torch.arange(len(labels), device=labels.device)) % self.spec.size
        self.embeddings[places] = embeddings.to(self.embeddings.dtype)
        self.labels[places] = labels
        self.rows += len(labels)
        self.steps += 1


def triplets_between(labels: Tensor, known_labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every (anchor of the batch, positive and negative of the memory), ascending, in [positive pairs x size] numbers.

    PML's own way holds [B x size x size].
    """
    same = labels.unsqueeze(1) == known_labels  # (B, size)
    anchors, positives = torch.where(same)
    pairs, negatives = torch.where(~same[anchors])
    return anchors[pairs], positives[pairs], negatives


def chosen_triplets(
    miner: Any, embeddings: Tensor, labels: Tensor, known: Tensor, known_labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What a TripletMarginMiner chooses of `triplets_between`, with g the gap by which a negative is farther.

    all: g <= margin; hard: g <= 0 too; semihard: 0 < g <= margin; easy: g > margin.
    """
    with torch.no_grad():
        anchors, positives, negatives = triplets_between(labels, known_labels)
        matrix = miner.distance(embeddings, known)
        gap = matrix[anchors, negatives] - matrix[anchors, positives]
        gap = -gap if miner.distance.is_inverted else gap
    within = gap <= miner.margin
    masks = {"all": within, "hard": within & (gap <= 0), "semihard": within & (gap > 0), "easy": ~within}
    mask = masks[miner.type_of_triplets]
    return anchors[mask], positives[mask], negatives[mask]
