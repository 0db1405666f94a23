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
        loss = (embeddings - self.centers[labels]).square().sum() / 2
        return loss / (len(labels) if self.spec.reduction == "mean" else 1), {}

    @torch.no_grad()
    def move(self, embeddings: Tensor, labels: Tensor) -> None:
        """c_j -= alpha * sum_i [y_i = j] (c_j - x_i) / (1 + sum_i [y_i = j]), from the whole global batch."""
        counts = torch.bincount(labels, minlength=len(self.centers)).unsqueeze(1)  # (num_classes, 1)
        sums = torch.zeros_like(self.centers).index_add_(0, labels, embeddings.to(self.centers.dtype))
        self.centers -= self.spec.alpha * (counts * self.centers - sums) / (1 + counts)
