"""N-pairs (Sohn, NeurIPS 2016) in tiles: an anchor and a positive a class, cross entropy of anchors over positives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raydml import catalogue
from raydml.losses.tiled.engine import Found
from raydml.losses.tiled.layout import COLUMNS, Layout
from raydml.losses.tiled.reduction import add_exponentials, log_one_plus
from raydml.losses.tiled.scores import Score, build_score, pull_prepare
from raydml.parallel import Group


@dataclass(frozen=True)
class TiledNPairs:
    """Each worker takes the anchors among its rows against all positives, and its positives against all anchors."""

    loss: Any
    score: Score

    def evaluate(self, embeddings: Tensor, labels: Tensor, group: Group) -> Found:
        """The loss of a gathered batch (B, D), (B,), and dL/d(own rows); it has no weights of its own."""
        layout = Layout(labels, len(labels) // group.num_slices)
        anchors, positives = first_pairs(labels)  # (N,) each
        sign = 1 if self.score.similar else -1
        with torch.no_grad():
            units = self.score.prepare(embeddings)
            own = slice(group.owned.start * layout.slice_size, group.owned.stop * layout.slice_size)
            collected = units.new_zeros(len(units[own]), 2)  # score of the own positive, log sum exp of the others
            for mine in self._tiles(anchors, layout, group):
                rows = anchors[mine]
                collected[rows - own.start] = self._collect(units[rows], mine, units[positives], sign)
            answers = group.gather_slices(collected)[anchors].requires_grad_()  # (N, 2)
        if not len(anchors):
            return embeddings.new_zeros(()), torch.zeros_like(embeddings[own]), []
        with torch.enable_grad():
            terms = log_one_plus(answers[:, 1] - answers[:, 0])
            given = {"losses": terms, "indices": anchors, "reduction_type": "element"}
            loss = self.loss.reducer({"loss": given}, terms.unsqueeze(1), labels)
        (pressure,) = torch.autograd.grad(loss, answers, materialize_grads=True, allow_unused=True)
        with torch.no_grad():
            total = torch.zeros_like(units[own])
            for numbers, others in ((anchors, positives), (positives, anchors)):
                for mine in self._tiles(numbers, layout, group):
                    rows = numbers[mine]
                    total[rows - own.start] += self._pull(
                        units[rows], mine, units[others], answers.detach(), pressure * sign, numbers is anchors
                    )
        return loss.detach(), pull_prepare(self.score, embeddings[own], total, layout.slice_size), []

    @staticmethod
    def _tiles(numbers: Tensor, layout: Layout, group: Group) -> Iterator[Tensor]:
        """Pairs whose anchor (or positive) lies in one row tile of the own slices."""
        for rows in layout.row_tiles(group.owned):
            (mine,) = ((numbers >= rows.start) & (numbers < rows.stop)).nonzero(as_tuple=True)
            if len(mine):
                yield mine

    def _collect(self, rows: Tensor, mine: Tensor, others: Tensor, sign: int) -> Tensor:
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
        self, rows: Tensor, mine: Tensor, others: Tensor, answers: Tensor, pressure: Tensor, of_anchors: bool
    ) -> Tensor:
        """Slopes of the rows' scores, whose softmax is over the positives whichever side the rows are on."""
        sign = 1 if self.score.similar else -1
        total = torch.zeros_like(rows)
        for start in range(0, len(others), COLUMNS):
            columns = slice(start, start + COLUMNS)
            scores = self.score.tile(rows, others[columns])
            anchor = answers[mine].unsqueeze(1) if of_anchors else answers[columns].unsqueeze(0)  # (r, 1, 2), (1, c, 2)
            force = pressure[mine].unsqueeze(1) if of_anchors else pressure[columns].unsqueeze(0)
            slopes = (scores * sign).sub_(anchor[..., 1]).exp_().mul_(force[..., 1])
            at = own_pair(mine, start, scores.shape[1])
            slopes[at] = force[..., 0].expand_as(scores)[at]
            total += self.score.pull(rows, others[columns], scores, slopes)
        return total


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


def own_pair(mine: Tensor, start: int, width: int) -> tuple[Tensor, Tensor]:
    """Rows whose own partner lies in the chunk, and its column there."""
    (rows,) = ((mine >= start) & (mine < start + width)).nonzero(as_tuple=True)
    return rows, mine[rows] - start


def build(spec: catalogue.NPairs, loss: Any) -> TiledNPairs | None:
    """N-pairs with any symmetric distance."""
    score = build_score(loss.distance)
    return None if spec.miner is not None or score is None else TiledNPairs(loss, score)
