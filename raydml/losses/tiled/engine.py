"""A gathered batch and a formula in; the loss and dL/d(own rows) out, in O(tile) memory and with exact gradients.

Each worker takes its own rows against all columns: once per round of statistics, and once for the slopes. What rows are
to others as columns follows from the others' statistics, which are gathered (a few numbers a row), so gradients of
embeddings never travel. Sums run over columns in one fixed order and tiles do not depend on the number of workers, so
neither do the bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from raydml.losses.tiled.layout import Layout, Tile
from raydml.losses.tiled.scores import Score, pull_prepare
from raydml.losses.tiled.statistics import Answers, Pairs, Statistic
from raydml.parallel import Group

Found = tuple[Tensor, Tensor, list[tuple[nn.Parameter, Tensor]]]  # loss, dL/d(own rows), dL/d(own weights)


class TiledLoss(Protocol):
    """A loss over a gathered batch that each worker computes for its own rows."""

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
    """The passes of one worker over one batch: its own rows against all columns."""

    def __init__(self, formula: Formula, score: Score, layout: Layout, units: Tensor, owned: range) -> None:
        self._formula, self._score, self._layout = formula, score, layout
        self._units = units  # (B, D) rows as the score takes them
        self._columns = units[layout.order]
        self._owned = owned
        self._numbers = torch.arange(layout.size, device=units.device)
        self._places = torch.empty_like(layout.places).scatter_(0, layout.order, layout.places)  # of rows
        self._largest_class = int(layout.class_sizes.max())

    def collect(self, statistics: Mapping[str, Statistic], answers: Answers) -> dict[str, Tensor]:
        """Answers of the own rows, in slice order."""
        parts: dict[str, list[Tensor]] = {name: [] for name in statistics}
        everywhere = any(statistic.over != "positives" for statistic in statistics.values())
        for rows in self._layout.row_tiles(self._owned):
            states = {
                name: statistic.start(self._units[rows], self._largest_class) for name, statistic in statistics.items()
            }
            for tile in self._layout.tiles(rows):
                if not everywhere and tile.positive is None:
                    continue
                pairs = self._of_rows(tile, self._scores(tile), answers)
                for name, statistic in statistics.items():
                    if not pairs.none(statistic.over):
                        states[name] = statistic.add(states[name], pairs)
            for name, statistic in statistics.items():
                parts[name].append(statistic.finish(states[name]))
        return {name: torch.cat(values) for name, values in parts.items()}

    def pull(self, answers: Answers, gradients: Answers) -> Tensor:
        """dL/d(units) of the own rows, (own, D), from dL/d(answers) of all rows."""
        return torch.cat([self._pull_rows(rows, answers, gradients) for rows in self._layout.row_tiles(self._owned)])

    def _pull_rows(self, rows: slice, answers: Answers, gradients: Answers) -> Tensor:
        total = torch.zeros_like(self._units[rows])
        for tile in self._layout.tiles(rows):
            scores = self._scores(tile)
            slopes = None
            for part in self._slopes(tile, scores, answers, gradients):
                slopes = part.contiguous() if slopes is None else slopes.add_(part)
            if slopes is not None:
                total += self._score.pull(self._units[rows], self._columns[tile.columns], scores, slopes)
        return total

    def _slopes(self, tile: Tile, scores: Tensor, answers: Answers, gradients: Answers) -> Iterator[Tensor]:
        """dL/d(score) (r, c), by statistic and by who is the anchor: the row or the column."""
        columns = self._layout.order[tile.columns]
        by_rows, by_columns = self._of_rows(tile, scores, answers), self._of_columns(tile, scores, answers)
        of_rows, of_columns = self._shaped(gradients, tile.rows, 1), self._shaped(gradients, columns, 0)
        for name, statistic in self._differentiable():
            if by_rows.none(statistic.over):
                continue
            on_rows, on_columns = statistic.force(of_rows[name]), statistic.force(of_columns[name])
            sides = [(by_rows, on_rows), (by_columns, on_columns)]
            for pairs, force in [(by_rows, on_rows + on_columns)] if statistic.mutual else sides:
                slopes = statistic.slopes(pairs, pairs.own[name], force)
                yield pairs.keep(slopes.expand_as(scores), statistic.over, 0)

    def _differentiable(self) -> Iterator[tuple[str, Statistic]]:
        for statistics in self._formula.rounds:
            yield from ((name, statistic) for name, statistic in statistics.items() if statistic.slope is not None)

    def _scores(self, tile: Tile) -> Tensor:
        return self._score.tile(self._units[tile.rows], self._columns[tile.columns])

    def _of_rows(self, tile: Tile, scores: Tensor, answers: Answers) -> Pairs:
        columns = self._layout.order[tile.columns]
        own, other = self._shaped(answers, tile.rows, 1), self._shaped(answers, columns, 0)
        places = self._layout.places[tile.columns].unsqueeze(0)
        return Pairs(scores, own, other, columns.unsqueeze(0), places, tile.positive, tile.own)

    def _of_columns(self, tile: Tile, scores: Tensor, answers: Answers) -> Pairs:
        columns = self._layout.order[tile.columns]
        own, other = self._shaped(answers, columns, 0), self._shaped(answers, tile.rows, 1)
        rest, places = self._numbers[tile.rows].unsqueeze(1), self._places[tile.rows].unsqueeze(1)
        return Pairs(scores, own, other, rest, places, tile.positive, tile.own)

    @staticmethod
    def _shaped(answers: Answers, index: slice | Tensor, dim: int) -> dict[str, Tensor]:
        return {name: value[index].unsqueeze(dim) for name, value in answers.items()}


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
            passes = Passes(self.formula, self.score, layout, self.score.prepare(embeddings), group.owned)
            answers: dict[str, Tensor] = {}
            for statistics in self.formula.rounds:
                found = passes.collect(statistics, answers)
                answers |= {name: group.gather_slices(value) for name, value in found.items()}
        leaves = {name: value.detach().requires_grad_() for name, value in answers.items()}
        with torch.enable_grad():
            loss = self.formula.loss(leaves, layout)
        if not loss.requires_grad:
            return loss.detach(), torch.zeros_like(embeddings[own]), []
        slopes = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True, allow_unused=True)
        with torch.no_grad():
            cotangents = passes.pull(answers, dict(zip(leaves, slopes, strict=True)))
        return loss.detach(), pull_prepare(self.score, embeddings[own], cotangents, layout.slice_size), []
