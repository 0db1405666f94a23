"""Proxy-Anchor (Kim et al., arXiv 2003.13911, equation 4) in tiles: for each proxy, over the rows of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raydml import catalogue
from raydml.losses.tiled.class_scores import ClassScores, own_class
from raydml.losses.tiled.engine import Found
from raydml.losses.tiled.reduction import add_exponentials, log_one_plus
from raydml.losses.tiled.scores import Score, build_score
from raydml.parallel import Group


@dataclass(frozen=True)
class TiledProxyAnchor:
    """log(1 + sum_p exp(alpha (margin - s))) of each class present, log(1 + sum_n exp(alpha (s + margin))) of each."""

    spec: catalogue.ProxyAnchor
    loss: Any
    score: Score

    def travels(self, slice_size: int) -> bool:
        """See TiledLoss."""
        return True

    def evaluate(self, embeddings: Tensor, labels: Tensor, group: Group) -> Found:
        """As TiledSoftmax."""
        table = ClassScores(self.score, self.loss, embeddings, len(labels) // group.num_slices, group)
        own, sign = labels[table.own], -1 if self.score.similar else 1

        def exponents(scores: Tensor, rows: slice, classes: slice) -> Tensor:
            """Exponents of the rows of the class, and of the others: (2, r, c), -inf for those that do not belong."""
            both = torch.stack([scores - self.spec.margin, -self.spec.margin - scores]).mul_(sign * self.spec.alpha)
            mine = torch.zeros_like(scores, dtype=torch.bool)
            mine[own_class(own[rows], classes)] = True
            return both.masked_fill_(torch.stack([~mine, mine]), -torch.inf)

        parts = []  # of each own slice: the largest exponent and the sum below it, (2, 2, C)
        smallest = torch.finfo(table.rows.dtype).min
        for _, tiles in table.slices():
            largest = table.rows.new_full((2, len(table.vectors)), smallest)
            total = torch.zeros_like(largest)
            for rows in tiles:
                for classes in table.chunks():
                    both = exponents(table.tile(rows, classes), rows, classes)
                    found = add_exponentials(largest[:, classes], total[:, classes], both)
                    largest[:, classes], total[:, classes] = found
            parts.append(torch.stack([largest, total]))
        maxima, sums = group.gather_slices(torch.stack(parts)).unbind(1)  # (V, 2, C) each
        shift = maxima.amax(0)
        answers = shift + (sums * (maxima - shift).exp()).sum(0).log()  # (2, C)
        leaf = torch.where(answers.isfinite(), answers, smallest).requires_grad_()
        with torch.enable_grad():
            loss = self._reduce(log_one_plus(leaf), labels)
        (pressure,) = torch.autograd.grad(loss, leaf, materialize_grads=True, allow_unused=True)

        def slopes(scores: Tensor, rows: slice, classes: slice) -> Tensor:
            both = exponents(scores, rows, classes)
            shares = both.sub_(leaf.detach()[:, None, classes]).exp_().mul_(pressure[:, None, classes])
            return (shares[0] - shares[1]).mul_(sign * self.spec.alpha)

        return loss.detach(), *table.pull(slopes)

    def _reduce(self, terms: Tensor, labels: Tensor) -> Tensor:
        present = len(torch.unique(labels))
        numbers = torch.arange(terms.shape[1], device=terms.device)
        given = {
            name: {"losses": part, "indices": numbers, "reduction_type": "element", "divisor": divisor}
            for name, part, divisor in zip(("pos_loss", "neg_loss"), terms, (present, len(numbers)), strict=True)
        }
        reduced: Tensor = self.loss.reducer(given, terms.T, labels)
        return reduced


def build(spec: catalogue.ProxyAnchor, loss: Any) -> TiledProxyAnchor | None:
    """Proxy-Anchor with any symmetric distance."""
    score = build_score(loss.distance)
    return None if spec.miner is not None or score is None else TiledProxyAnchor(spec, loss, score)
