"""The losses as textbooks print them: embeddings (B, D) and labels (B,) in, (loss, statistics) out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from raydml.catalogue import TextbookContrastive, TextbookTriplet


def distance_matrix(embeddings: Tensor, kind: str) -> Tensor:
    """D of all pairs of rows, (B, B); the subgradient of a norm at equal rows is 0, so duplicates stay finite."""
    if kind == "cosine":
        unit = functional.normalize(embeddings)
        return 1 - unit @ unit.T
    order = {"euclidean": 2.0, "manhattan": 1.0}[kind]
    # The faster way over inner products loses half of the digits of small distances.
    return torch.cdist(embeddings, embeddings, p=order, compute_mode="donot_use_mm_for_euclid_dist")


class ContrastiveLoss(nn.Module):
    """L = 1 / (2N) sum_i sum_j [y_ij D_ij^2 + (1 - y_ij) max(0, m - D_ij)^2] (Hadsell, Chopra, LeCun 2006).

    N is the number of rows and both orders of a pair count; i = j adds nothing, since D_ii = 0 and y_ii = 1.
    """

    def __init__(self, spec: TextbookContrastive) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The loss, shape ()."""
        distances = distance_matrix(embeddings, self.spec.distance.kind)
        same = labels.unsqueeze(0) == labels.unsqueeze(1)
        pull, push = distances.square(), functional.relu(self.spec.margin - distances).square()
        return torch.where(same, pull, push).sum() / (2 * len(labels)), {}


class TripletLoss(nn.Module):
    """L = mean of max(0, D(a, p)^2 - D(a, n)^2 + m) over the miner's triplets (Schroff et al. 2015).

    With g = D(a, n)^2 - D(a, p)^2: `all` takes every triplet, `hard` g <= 0, `semihard` 0 < g <= m. No triplets: 0.
    """

    def __init__(self, spec: TextbookTriplet) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The loss, shape (), and the number of triplets."""
        squared = distance_matrix(embeddings, self.spec.distance.kind).square()
        anchors, positives, negatives = all_triplets(labels)
        gap = squared[anchors, negatives] - squared[anchors, positives]  # (triplets,)
        gap = gap[self._chosen(gap.detach())]
        loss = functional.relu(self.spec.margin - gap).sum() / max(len(gap), 1)
        return loss, {"tuples": float(len(gap))}

    def _chosen(self, gap: Tensor) -> Tensor:
        masks = {"all": gap == gap, "hard": gap <= 0, "semihard": (gap > 0) & (gap <= self.spec.margin)}
        return masks[self.spec.miner.kind]


def all_triplets(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every (anchor, positive, negative) in ascending order; a row is no positive of itself."""
    same = labels.unsqueeze(0) == labels.unsqueeze(1)
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    anchors, positives, negatives = torch.where(positive.unsqueeze(2) & ~same.unsqueeze(1))
    return anchors, positives, negatives
