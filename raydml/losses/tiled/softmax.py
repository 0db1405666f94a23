"""Cross entropy of rows against class vectors: normalised softmax, CosFace, ArcFace and Proxy-NCA in tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raydml import catalogue
from raydml.losses.tiled.class_scores import ClassScores, own_class
from raydml.losses.tiled.engine import Found
from raydml.losses.tiled.reduction import add_exponentials, log_one_plus, reduce_rows
from raydml.losses.tiled.scores import DotProduct, Score, build_score
from raydml.parallel import Group


@dataclass(frozen=True)
class TiledSoftmax:
    """Cross entropy over classes, logits `scale` x score; `target` changes the score of the own class."""

    loss: Any
    score: Score
    scale: float
    target: Callable[[Tensor], Tensor]

    def travels(self, slice_size: int) -> bool:
        """See TiledLoss."""
        return True

    def evaluate(self, embeddings: Tensor, labels: Tensor, group: Group) -> Found:
        """The loss of a gathered batch (B, D), (B,), with gradients of the own rows and of the class vectors."""
        table = ClassScores(self.score, self.loss, embeddings, len(labels) // group.num_slices, group)
        own = labels[table.own]
        targets = torch.empty_like(table.rows[:, 0])  # score of the own class
        others = torch.empty_like(targets)  # log sum exp of the logits of all other classes
        for _, tiles in table.slices():
            for rows in tiles:
                largest = torch.full_like(targets[rows], torch.finfo(targets.dtype).min)
                total = torch.zeros_like(largest)
                for classes in table.chunks():
                    scores = table.tile(rows, classes)
                    at = own_class(own[rows], classes)
                    targets[rows][at[0]] = scores[at]
                    logits = scores.mul_(self.scale)
                    logits[at] = -torch.inf
                    largest, total = add_exponentials(largest, total, logits)
                others[rows] = largest + total.log()
        # On all workers alike, and with all rows: kernels may round differently in vectors of another length.
        answers = group.gather_slices(torch.stack([targets, others], dim=1)).requires_grad_()  # (B, 2)
        with torch.enable_grad():
            wanted = self.target(answers[:, 0]) * self.scale
            loss = reduce_rows(self.loss, log_one_plus(answers[:, 1] - wanted), labels)
        (gradients,) = torch.autograd.grad(loss, answers, materialize_grads=True, allow_unused=True)
        of_targets, of_others = gradients[table.own].unbind(1)

        def slopes(scores: Tensor, rows: slice, classes: slice) -> Tensor:
            share = (scores * self.scale).sub_(others[rows].unsqueeze(1)).exp_()
            share.mul_((of_others[rows] * self.scale).unsqueeze(1))
            at = own_class(own[rows], classes)
            share[at] = of_targets[rows][at[0]]
            return share

        return loss.detach(), *table.pull(slopes)


def build(spec: Any, loss: Any) -> TiledSoftmax | None:
    """Softmax heads on unit vectors: normalised softmax, CosFace, ArcFace."""
    score = build_score(loss.distance)
    if spec.miner is not None or not isinstance(score, DotProduct) or not loss.distance.normalize_embeddings:
        return None
    if isinstance(spec, catalogue.NormalizedSoftmax):
        return TiledSoftmax(loss, score, 1 / spec.temperature, lambda cosine: cosine)
    return TiledSoftmax(loss, score, spec.scale, loss.modify_cosine_of_target_classes)


def build_proxy_nca(spec: catalogue.ProxyNca, loss: Any) -> TiledSoftmax | None:
    """Proxy-NCA with the own proxy in the denominator, as pytorch-metric-learning has it."""
    score = build_score(loss.distance)
    if spec.miner is not None or score is None:
        return None
    return TiledSoftmax(loss, score, spec.softmax_scale if score.similar else -spec.softmax_scale, lambda value: value)
