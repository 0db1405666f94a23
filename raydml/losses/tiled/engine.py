"""A gathered batch and a formula in; the loss and dL/d(own rows) out, in O(tile) memory and with exact gradients.

The tiles of a slice (see layout) are computed by the worker that owns it: once per round of statistics, and once for
the slopes. A tile adds to the statistics of its rows and of its columns, and its slopes to the gradients of both. Both
are kept apart by slice: the workers gather the states of all slices and finish them alike, and gradients (B, D) are
summed over the fixed tree of slices. No sum depends on the number of workers, so neither do the bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from raydml.losses.tiled.layout import Layout, Tile
from raydml.losses.tiled.scores import Score, pull_prepare
from raydml.losses.tiled.statistics import Answers, Pairs, Statistic
from raydml.parallel import Group, TreeAccumulator, tree_sum

Found = tuple[Tensor, Tensor, list[tuple[nn.Parameter, Tensor]]]  # loss, dL/d(own rows), dL/d(own weights)


class TiledLoss(Protocol):
    """A loss over a gathered batch whose work is divided among the workers."""

    def evaluate(self, embeddings: Tensor, labels: Tensor, group: Group) -> Found:
        """The loss of rows (B, D) with labels (B,), shape (), dL/d(own rows), (own, D), and dL/d(own weights)."""
        ...


@dataclass(frozen=True)
class Formula:
    """A loss as statistics of rows, in rounds of which a later one may use the answers of an earlier one.

    `loss` maps the answers, (B,) or (B, q) each, and the layout to a scalar; autograd differentiates it.
    """

    rounds: tuple[Mapping[str, Statistic], ...]
    loss: Callable[[Answers, Layout], Tensor]


class Passes:
    """The passes of one worker over one batch: the tiles of its own slices. All rows are in the order of classes."""

    def __init__(self, formula: Formula, score: Score, layout: Layout, units: Tensor, group: Group) -> None:
        self._formula, self._score, self._layout = formula, score, layout
        self._units = units  # (B, D) sorted rows as the score takes them
        self._group = group

    def collect(self, statistics: Mapping[str, Statistic], answers: Answers) -> dict[str, Tensor]:
        """Answers of all rows; one exchange between the workers."""
        parts: list[list[Tensor]] = []  # of each own slice, the states in the order of `statistics`
        for index in self._group.owned:
            states = {name: one.start(self._units, self._layout.largest_class) for name, one in statistics.items()}
            for _, sides in self._tiles(index, statistics, answers):
                for name, statistic in statistics.items():
                    if not sides[0].none(statistic.over):
                        statistic.collect(states[name], sides)
            parts.append(list(states.values()))
        own = torch.stack([torch.cat([state.flatten() for state in states]) for states in parts])
        everybody = self._group.gather_slices(own)  # (V, numbers)
        columns = torch.split(everybody, [state.numel() for state in parts[0]], dim=1)
        return {
            name: statistic.finish(states.reshape(-1, *state.shape))
            for (name, statistic), states, state in zip(statistics.items(), columns, parts[0], strict=True)
        }

    def pull(self, answers: Answers, gradients: Answers) -> Tensor:
        """dL/d(units), (B, D), from dL/d(answers)."""
        statistics = {
            name: statistic
            for given in self._formula.rounds
            for name, statistic in given.items()
            if statistic.slope is not None
        }
        accumulator = TreeAccumulator(self._group.num_slices)
        for index in self._group.owned:
            total = torch.zeros_like(self._units)
            for tile, sides in self._tiles(index, statistics, answers):
                slopes = self._slopes(statistics, sides, gradients)
                rows, columns = self._units[tile.rows], self._units[tile.columns]
                of_rows, of_columns = self._score.pull(rows, columns, sides[0].scores, slopes)
                total[tile.rows] += of_rows
                total[tile.columns] += of_columns
            accumulator.add(index, [total])
        return tree_sum(accumulator, self._group)[0]

    @staticmethod
    def _slopes(statistics: Mapping[str, Statistic], sides: Sequence[Pairs], gradients: Answers) -> Tensor:
        """dL/d(score) of a tile, (r, c)."""
        total: Tensor | None = None
        for name, statistic in statistics.items():
            if sides[0].none(statistic.over):
                continue
            forces = [statistic.force(gradients[name][pairs.anchors].unsqueeze(1)) for pairs in sides]
            part = statistic.push(sides, [pairs.own[name] for pairs in sides], forces)
            total = part.contiguous() if total is None else total.add_(part)
        assert total is not None, "a tile that no statistic looks at"
        return total

    def _tiles(
        self, index: int, statistics: Mapping[str, Statistic], answers: Answers
    ) -> Iterator[tuple[Tile, list[Pairs]]]:
        """A slice's tiles that a statistic looks at, seen from its rows and, where they differ, its columns."""
        everywhere = any(statistic.over != "positives" for statistic in statistics.values())
        for tile in self._layout.tiles(index):
            if not everywhere and tile.positive is None:
                continue
            scores = self._score.tile(self._units[tile.rows], self._units[tile.columns])
            sides = [self._pairs(tile.rows, tile.columns, scores, tile.positive, tile.itself, answers)]
            if tile.rows != tile.columns:
                positive, itself = (None if mask is None else mask.T for mask in (tile.positive, tile.itself))
                sides.append(self._pairs(tile.columns, tile.rows, scores.T, positive, itself, answers))
            yield tile, sides

    def _pairs(
        self,
        anchors: slice,
        rest: slice,
        scores: Tensor,
        positive: Tensor | None,
        itself: Tensor | None,
        answers: Answers,
    ) -> Pairs:
        own = {name: value[anchors].unsqueeze(1) for name, value in answers.items()}
        other = {name: value[rest].unsqueeze(0) for name, value in answers.items()}
        numbers, places = self._layout.numbers[rest].unsqueeze(0), self._layout.places[rest].unsqueeze(0)
        return Pairs(anchors, scores, own, other, numbers, places, positive, itself)


@dataclass(frozen=True)
class TiledPairs:
    """A loss over pairs of rows, with the score of two rows."""

    formula: Formula
    score: Score

    def evaluate(self, embeddings: Tensor, labels: Tensor, group: Group) -> Found:
        """The loss of a gathered batch (B, D), (B,), and its gradients; the formula has no weights of its own."""
        layout = Layout(labels, len(labels) // group.num_slices)
        own = slice(group.owned.start * layout.slice_size, group.owned.stop * layout.slice_size)
        with torch.no_grad():
            passes = Passes(self.formula, self.score, layout, self.score.prepare(embeddings)[layout.order], group)
            answers: dict[str, Tensor] = {}
            for statistics in self.formula.rounds:
                answers |= passes.collect(statistics, answers)
        leaves = {name: value.detach().requires_grad_() for name, value in answers.items()}
        with torch.enable_grad():
            loss = self.formula.loss(leaves, layout)
        if not loss.requires_grad:
            return loss.detach(), torch.zeros_like(embeddings[own]), []
        slopes = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True, allow_unused=True)
        with torch.no_grad():
            cotangents = passes.pull(answers, dict(zip(leaves, slopes, strict=True)))[layout.ranks[own]]
        return loss.detach(), pull_prepare(self.score, embeddings[own], cotangents, layout.slice_size), []
