"""Losses of pytorch-metric-learning 2.9 where they go wrong on a batch: same parameters in, a finite, pure loss out."""

from __future__ import annotations

import math
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


def multiple_angle(loss: Any) -> None:
    """The terms of cos(m t) = sum_n (-1)^n C(m, 2n) cos(t)^(m - 2n) sin(t)^(2n); PML's own way warns under NumPy 2."""
    loss.max_n = loss.margin // 2
    steps = range(loss.max_n + 1)
    loss.n_range = torch.tensor(steps)
    loss.margin_choose_n = torch.tensor([float(math.comb(loss.margin, 2 * n)) for n in steps])
    loss.cos_powers = torch.tensor([loss.margin - 2 * n for n in steps])
    loss.alternating = torch.tensor([(-1) ** n for n in steps])


class LargeMarginSoftmaxLoss(losses.LargeMarginSoftmaxLoss):  # type: ignore[misc]
    """Large-margin softmax, built without warnings."""

    def init_margin(self) -> None:
        """Set the terms of cos(margin * angle)."""
        multiple_angle(self)


class SphereFaceLoss(losses.SphereFaceLoss):  # type: ignore[misc]
    """SphereFace, built without warnings."""

    def init_margin(self) -> None:
        """Set the terms of cos(margin * angle)."""
        multiple_angle(self)


class TupletMarginLoss(losses.TupletMarginLoss):  # type: ignore[misc]
    """Tuplet margin that stands two equal rows of one class."""

    def _compute_loss(self, pos_pairs: Any, neg_pairs: Any, indices_tuple: tuple[Tensor, ...]) -> Any:
        positives = inside_unit(pos_pairs) if len(pos_pairs) else pos_pairs
        return super()._compute_loss(positives, neg_pairs, indices_tuple)


class HistogramLoss(losses.HistogramLoss):  # type: ignore[misc]
    """Histogram loss in the embeddings' precision; PML scatters a similarity of 1 past the end of the histogram."""

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
        position = (distances.clamp(-1, 1 - 1e-6) + 1) / self.delta  # in bins
        lower = position.detach().floor().long()
        upper_share = position - lower
        edges = position.new_zeros(round(2 / self.delta) + 1)
        density: Tensor = edges.scatter_add(0, lower, 1 - upper_share).scatter_add(0, lower + 1, upper_share)
        return density / len(position)


def unordered_pairs(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct pairs {i, j} in ascending order."""
    pairs = torch.stack([first, second]).sort(dim=0).values.unique(dim=1)  # type: ignore[no-untyped-call]
    return pairs[0], pairs[1]


class NCALoss(losses.NCALoss):  # type: ignore[misc]
    """NCA that is 0, not NaN, where no row has a neighbour of its class within floating-point reach."""

    def nca_computation(self, *arguments: Any) -> dict[str, Any]:
        """-log of the probability to meet one's own class, a term for each row that can."""
        terms = super().nca_computation(*arguments)
        return dict(terms if len(terms["loss"]["losses"]) else self.zero_losses())


class ProxyNCALoss(losses.ProxyNCALoss):  # type: ignore[misc]
    """Proxy-NCA that is 0, not NaN, where every probability underflows."""

    def nca_computation(self, *arguments: Any) -> dict[str, Any]:
        """-log of the probability of the own class's proxy, a term for each row that has one in reach."""
        terms = super().nca_computation(*arguments)
        return dict(terms if len(terms["loss"]["losses"]) else self.zero_losses())


class NTXentLoss(losses.NTXentLoss):  # type: ignore[misc]
    """NT-Xent in O(B^2) numbers; PML builds [positive pairs x negative pairs], gigabytes from 512 rows on."""

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor
    ) -> dict[str, Any]:
        """-log(exp(s_ap) / (exp(s_ap) + sum_n exp(s_an))) of each positive pair; negatives mined twice count twice."""
        first, positives, second, negatives = loss_and_miner_utils.convert_to_pairs(indices_tuple, labels, ref_labels)
        if len(first) == 0 or len(second) == 0:
            return dict(self.zero_losses())
        matrix = self.distance(embeddings, ref_emb)
        scores = (matrix if self.distance.is_inverted else -matrix) / self.temperature  # (B, B)
        counts = torch.zeros_like(scores)
        counts.index_put_((second, negatives), counts.new_ones(()), accumulate=True)
        # A finite floor, not -inf, keeps the gradient of a row without negatives at 0.
        against = torch.where(counts > 0, scores + counts.clamp(min=1).log(), torch.finfo(scores.dtype).min)
        positive = scores[first, positives]  # (positive pairs,)
        terms = torch.logaddexp(positive, against.logsumexp(dim=1)[first]) - positive
        return {"loss": {"losses": terms, "indices": (first, positives), "reduction_type": "pos_pair"}}


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
