"""N-pairs (Sohn, NeurIPS 2016) in tiles: an anchor and a positive a class, cross entropy of anchors over positives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raydml import catalogue
from raydml.losses.tiled.engine import Found
from raydml.losses.tiled.layout import COLUMNS, ROWS
from raydml.losses.tiled.reduction import add_exponentials, log_one_plus
from raydml.losses.tiled.scores import Score, build_score, pull_prepare
from raydml.parallel import Group, TreeAccumulator, tree_sum


@dataclass(frozen=True)
class TiledNPairs:
    """The anchors are divided among the slices; each worker takes those of its slices against all positives."""

    loss: Any
    score: Score

    def travels(self, slice_size: int) -> bool:
        """See TiledLoss: anchors and positives lie anywhere."""
        return False

    def evaluate(self, embeddings: Tensor, labels: Tensor, group: Group) -> Found:
        """The loss of a gathered batch (B, D), (B,), and dL/d(own rows); it has no weights of its own."""
        size = len(labels) // group.num_slices
        own = slice(group.owned.start * size, group.owned.stop * size)
        anchors, positives = first_pairs(labels)  # (N,) each
        if not len(anchors):
            return embeddings.new_zeros(()), torch.zeros_like(embeddings[own]), []
        sign = 1 if self.score.similar else -1
        bounds = [len(anchors) * index // group.num_slices for index in range(group.num_slices + 1)]
        counts = [bounds[share.stop] - bounds[share.start] for share in map(group.share, range(group.size))]
        with torch.no_grad():
            units = self.score.prepare(embeddings)
            parts = [
                self._collect(units[anchors[mine]], mine, units[positives], sign)
                for index in group.owned
                for mine in tiles(bounds, index)
            ]
            found = torch.cat(parts) if parts else units.new_empty(0, 2)
            answers = group.gather_rows(found, counts).requires_grad_()  # (N, 2)
        with torch.enable_grad():
            terms = log_one_plus(answers[:, 1] - answers[:, 0])
            given = {"losses": terms, "indices": anchors, "reduction_type": "element"}
            loss = self.loss.reducer({"loss": given}, terms.unsqueeze(1), labels)
        (pressure,) = torch.autograd.grad(loss, answers, materialize_grads=True, allow_unused=True)
        accumulator = TreeAccumulator(group.num_slices)
        with torch.no_grad():
            for index in group.owned:
                total = torch.zeros_like(units)
                for mine in tiles(bounds, index):
                    force = pressure[mine] * sign
                    self._pull(total, units, anchors[mine], positives, mine, answers[mine].detach(), force)
                accumulator.add(index, [total])
            cotangents = tree_sum(accumulator, group)[0][own]
        return loss.detach(), pull_prepare(self.score, embeddings[own], cotangents, size), []

    def _collect(self, rows: Tensor, mine: slice, others: Tensor, sign: int) -> Tensor:
        """(n, 2): the score of the own positive, and the log-sum-exp of the others."""
        targets = rows.new_zeros(len(rows))
        largest = torch.full_like(targets, torch.finfo(rows.dtype).min)
        total = torch.zeros_like(targets)
        for start in range(0, len(others), COLUMNS):
            logits = self.score.tile(rows, others[start : start + COLUMNS]).mul_(sign)
            at = own_pair(mine, start, logits.shape[1])
            targets[at[0]] = logits[at]
            logits[at] = -torch.inf
            largest, total = add_exponentials(largest, total, logits)
        none = torch.finfo(rows.dtype).min
        return torch.stack([targets, torch.where(total > 0, largest + total.log(), none)], dim=1)

    def _pull(
        self,
        total: Tensor,
        units: Tensor,
        anchors: Tensor,
        positives: Tensor,
        mine: slice,
        answers: Tensor,
        force: Tensor,
    ) -> None:
        """Add to `total`, (B, D), what the scores of some anchors give to them and to all positives."""
        sign = 1 if self.score.similar else -1
        for start in range(0, len(positives), COLUMNS):
            others = positives[start : start + COLUMNS]
            scores = self.score.tile(units[anchors], units[others])
            slopes = (scores * sign).sub_(answers[:, 1:]).exp_().mul_(force[:, 1:])
            at = own_pair(mine, start, len(others))
            slopes[at] = force[at[0], 0]
            of_anchors, of_positives = self.score.pull(units[anchors], units[others], scores, slopes)
            total[anchors] += of_anchors
            total[others] += of_positives


def tiles(bounds: list[int], index: int) -> Iterator[slice]:
    """The pairs of one slice, a row tile at a time."""
    for start in range(bounds[index], bounds[index + 1], ROWS):
        yield slice(start, min(start + ROWS, bounds[index + 1]))


def first_pairs(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The first two rows of each class that has two, in order of labels: anchors and positives, (N,) each."""
    order = labels.argsort(stable=True)
    ordered = labels[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    (starts,) = first.nonzero(as_tuple=True)
    starts = starts[starts + 1 < len(labels)]
    starts = starts[~first[starts + 1]]
    return order[starts], order[starts + 1]


def own_pair(mine: slice, start: int, width: int) -> tuple[Tensor, Tensor]:
    """Rows whose own partner lies in the chunk, and its column there."""
    first, stop = max(mine.start, start), min(mine.stop, start + width)
    numbers = torch.arange(first, max(first, stop))
    return numbers - mine.start, numbers - start


def build(spec: catalogue.NPairs, loss: Any) -> TiledNPairs | None:
    """N-pairs with any symmetric distance."""
    score = build_score(loss.distance)
    return None if spec.miner is not None or score is None else TiledNPairs(loss, score)
