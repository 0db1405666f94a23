"""Losses of pytorch-metric-learning 2.9 where they go wrong on a batch: same parameters in, a finite, pure loss out."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils import loss_and_miner_utils
from torch import Tensor
from torch.nn import functional


def inside_unit(cosine: Tensor) -> Tensor:
    """Cosines kept where acos has a finite derivative; equal vectors pass no gradient in place of a NaN."""
    limit = 1 - 4 * torch.finfo(cosine.dtype).eps
    return cosine.clamp(-limit, limit)


class ArcFaceLoss(losses.ArcFaceLoss):  # type: ignore[misc]
    """ArcFace whose angle is differentiable at 0."""

    def get_angles(self, cosine_of_target_classes: Tensor) -> Tensor:
        """Angles in radians, shape (B,)."""
        angles: Tensor = super().get_angles(inside_unit(cosine_of_target_classes))
        return angles


class SubCenterArcFaceLoss(losses.SubCenterArcFaceLoss):  # type: ignore[misc]
    """Sub-center ArcFace whose angle is differentiable at 0."""

    def get_angles(self, cosine_of_target_classes: Tensor) -> Tensor:
        """Angles in radians, shape (B,)."""
        angles: Tensor = super().get_angles(inside_unit(cosine_of_target_classes))
        return angles


class TupletMarginLoss(losses.TupletMarginLoss):  # type: ignore[misc]
    """Tuplet margin that stands two equal rows of one class."""

    def _compute_loss(self, pos_pairs: Any, neg_pairs: Any, indices_tuple: tuple[Tensor, ...]) -> Any:
        positives = inside_unit(pos_pairs) if len(pos_pairs) else pos_pairs
        return super()._compute_loss(positives, neg_pairs, indices_tuple)


class HistogramLoss(losses.HistogramLoss):  # type: ignore[misc]
    """Histogram loss whose last bin holds a similarity of 1: PML scatters it past the end of the histogram."""

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor
    ) -> dict[str, Any]:
        """Probability that a negative pair is more similar than a positive one; pairs are counted once."""
        anchors, positives, negatives = loss_and_miner_utils.convert_to_triplets(
            indices_tuple, labels, ref_labels, t_per_anchor="all"
        )
        if len(anchors) == 0:
            return dict(self.zero_losses())
        similarities = self.distance(embeddings, ref_emb)  # (B, B)
        below = self.compute_density(similarities[unordered_pairs(anchors, positives)]).cumsum(0)  # (bins,)
        density = self.compute_density(similarities[unordered_pairs(anchors, negatives)])
        return {"loss": {"losses": (density * below).sum(), "indices": None, "reduction_type": "already_reduced"}}

    def compute_density(self, distances: Tensor) -> Tensor:
        """Linear histogram over the edges of the bins, shape (n_bins + 1,), summing to 1."""
        density: Tensor = super().compute_density(distances.clamp(-1, 1 - 1e-6))
        return density


def unordered_pairs(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct pairs {i, j} in ascending order."""
    pairs = torch.stack([first, second]).sort(dim=0).values.unique(dim=1)
    return pairs[0], pairs[1]


class P2SGradLoss(losses.P2SGradLoss):  # type: ignore[misc]
    """P2SGrad on normalised weights; PML rescales the weights themselves at every forward pass."""

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor
    ) -> dict[str, Any]:
        """Mean of (cos(x_i, w_j) - [j = y_i])^2 over rows and classes."""
        cosine = functional.normalize(embeddings) @ functional.normalize(self.weight, dim=0)  # (B, num_classes)
        target = functional.one_hot(labels, self.num_classes).to(cosine.dtype)
        loss = functional.mse_loss(cosine, target)
        return {"loss": {"losses": loss, "indices": None, "reduction_type": "already_reduced"}}


class SmoothAPLoss(losses.SmoothAPLoss):  # type: ignore[misc]
    """Smooth average precision for rows in any order; PML's is only right for as many classes as samples, in blocks."""

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor
    ) -> dict[str, Any]:
        """1 - AP of each row as a query, itself among the relevant rows; O(B^3) numbers."""
        similarities = self.distance(embeddings)  # (B, B)
        above = torch.sigmoid((similarities.unsqueeze(1) - similarities.unsqueeze(2)) / self.temperature)
        above = above * (1 - torch.eye(len(labels), dtype=above.dtype, device=above.device))  # (query, item, other)
        same = (labels.unsqueeze(0) == labels.unsqueeze(1)).to(above.dtype)  # (B, B)
        rank = 1 + above.sum(dim=2)
        rank_among_positives = 1 + (above * same.unsqueeze(1)).sum(dim=2)
        precision = (same * rank_among_positives / rank).sum(dim=1) / same.sum(dim=1)  # (B,)
        weights = loss_and_miner_utils.convert_to_weights(indices_tuple, labels, dtype=precision.dtype)
        rows = torch.arange(len(labels), device=labels.device)
        return {"loss": {"losses": (1 - precision) * weights, "indices": rows, "reduction_type": "element"}}
