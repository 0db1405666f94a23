"""Center loss (Wen et al., ECCV 2016): rows are pulled to their class's centre, which moves by its own rule."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raydml.catalogue import Center, CenterTerm


class CenterLoss(nn.Module):
    """L = 1/2 sum_i |x_i - c_{y_i}|^2, or its mean over rows; centres (num_classes, D) start at 0, without gradient."""

    centers: Tensor

    def __init__(self, spec: Center | CenterTerm, num_classes: int, dimension: int) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("centers", torch.zeros(num_classes, dimension))

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The loss, shape ()."""
        loss = (embeddings - self.rows(labels)).square().sum() / 2
        return loss / (len(labels) if self.spec.reduction == "mean" else 1), {}

    def rows(self, labels: Tensor) -> Tensor:
        """Centres of these classes, (B, D)."""
        return self.centers[labels]

    @torch.no_grad()
    def move(self, embeddings: Tensor, labels: Tensor) -> None:
        """Move the centres, by the whole global batch."""
        self.centers.copy_(self.moved(self.centers, embeddings.to(self.centers.dtype), labels))

    def moved(self, centers: Tensor, embeddings: Tensor, labels: Tensor) -> Tensor:
        """c_j - alpha * sum_i [y_i = j] (c_j - x_i) / (1 + sum_i [y_i = j]) for all c (n, D) of classes 0 to n - 1."""
        counts = torch.bincount(labels, minlength=len(centers)).unsqueeze(1)  # (n, 1)
        sums = torch.zeros_like(centers).index_add_(0, labels, embeddings)
        return centers - self.spec.alpha * (counts * centers - sums) / (1 + counts)
