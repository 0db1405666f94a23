"""A batch and a formula in; the loss and dL/d(own rows) out, in O(tile) memory and with exact gradients.

The tiles of a slice (see layout) are computed by the worker that owns it: once per round of statistics, and once for
the slopes. A tile adds to the statistics of its rows and of its columns, and its slopes to the gradients of both. Both
are kept apart by slice: rows belong to a worker, which takes the states of all slices and finishes them, and sums
gradients over the fixed tree of slices. No sum depends on the number of workers, nor on whether rows travel (see
exchange), so neither do the bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from raydml.losses.tiled.exchange import Meeting, Order, SortedRows, columns_of, own_rows, rows_of, sorted_rows
from raydml.losses.tiled.layout import Layout, Tile, can_travel
from raydml.losses.tiled.row_sums import summed_gradients
from raydml.losses.tiled.scores import Score, pull_prepare
from raydml.losses.tiled.statistics import Answers, Pairs, Statistic
from raydml.parallel import Group

Found = tuple[Tensor, Tensor, list[tuple[nn.Parameter, Tensor]]]  # loss, dL/d(own rows), dL/d(own weights)


class TiledLoss(Protocol):
    """A loss over a batch whose work is divided among the workers."""

    def travels(self, slice_size: int) -> bool:
        """Whether no worker needs to hold all rows of slices of that size."""
        ...

    def evaluate(self, embeddings: Tensor, labels: Tensor, group: Group) -> Found:
        """The loss of rows with labels (B,), shape (), dL/d(own rows), (own, D), and dL/d(own weights).

        `embeddings` are all rows, (B, D); or the own ones, (own, D), where the loss travels. The bits are the same.
        """
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

    def __init__(self, formula: Formula, score: Score, layout: Layout, rows: SortedRows, group: Group) -> None:
        self._formula, self._score, self._layout = formula, score, layout
        self._rows, self._group = rows, group
        self._units = dict(zip(group.owned, torch.split(rows.own, layout.slice_size), strict=True))

    def collect(self, statistics: Mapping[str, Statistic], answers: Answers) -> dict[str, Tensor]:
        """Answers of all rows, (B,) or (B, q)."""
        layout = self._layout
        everywhere = self._rows.own.new_empty(()).expand(layout.size, 1)
        states = {  # of each own slice
            index: {name: one.start(everywhere) for name, one in statistics.items()} for index in self._group.owned
        }
        for meetings, _ in self._rows.meetings():
            for meeting in meetings:
                for _, _, _, sides in self._tiles(meeting, statistics, answers):
                    for name, statistic in statistics.items():
                        if not sides[0].none(statistic.over):
                            statistic.collect(states[meeting.index][name], sides)
        flat = torch.stack(
            [torch.cat([state.view(layout.size, -1) for state in one.values()], 1) for one in states.values()]
        )
        shapes = {name: state.shape[1:] for name, state in next(iter(states.values())).items()}
        found = [
            self._finish(statistics, part, shapes) for part in torch.split(self._to_owners(flat), layout.slice_size, 1)
        ]
        return {name: self._group.gather_slices(torch.cat([answer[name] for answer in found])) for name in statistics}

    def _to_owners(self, states: Tensor) -> Tensor:
        """States of all rows after own slices' tiles -> of own rows after those of every slice, (V, own, numbers)."""
        group, size, width = self._group, self._layout.slice_size, states.shape[2]
        own = len(group.owned)
        counts = [len(group.share(rank)) * size for rank in range(group.size)]
        outgoing = torch.cat([part.reshape(-1, width) for part in torch.split(states, counts, 1)])
        received = group.exchange(outgoing, [own * count for count in counts], [own * count for count in counts])
        return received.view(group.num_slices, own * size, width)

    @staticmethod
    def _finish(
        statistics: Mapping[str, Statistic], states: Tensor, shapes: Mapping[str, torch.Size]
    ) -> dict[str, Tensor]:
        """Answers of a slice's rows from their states after every slice, (V, S, numbers)."""
        columns = torch.split(states, [shape.numel() for shape in shapes.values()], 2)
        return {
            name: statistic.finish(part.reshape(*part.shape[:2], *shapes[name]))
            for (name, statistic), part in zip(statistics.items(), columns, strict=True)
        }

    def pull(self, answers: Answers, gradients: Answers) -> Tensor:
        """dL/d(own units), in the order of classes, from dL/d(answers)."""
        statistics = {
            name: statistic
            for given in self._formula.rounds
            for name, statistic in given.items()
            if statistic.slope is not None
        }

        def pulled(meeting: Meeting) -> Iterator[tuple[Tile, Tensor, Tensor]]:
            for tile, rows, columns, sides in self._tiles(meeting, statistics, answers):
                slopes = self._slopes(statistics, sides, gradients)
                yield tile, *self._score.pull(rows, columns, sides[0].scores, slopes)

        return summed_gradients(self._rows, self._layout, self._group, pulled)

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
        self, meeting: Meeting, statistics: Mapping[str, Statistic], answers: Answers
    ) -> Iterator[tuple[Tile, Tensor, Tensor, list[Pairs]]]:
        """Tiles that a statistic looks at, the units of their rows and of their columns.

        Each is seen from its rows and, where they differ, its columns.
        """
        everywhere = any(statistic.over != "positives" for statistic in statistics.values())
        for tile in self._layout.tiles_between(meeting.index, meeting.others):
            if not everywhere and tile.positive is None:
                continue
            rows = self._units[meeting.index][self._layout.within(meeting.index, tile.rows)]
            columns = meeting.units[columns_of(meeting, tile, self._layout)]
            scores = self._score.tile(rows, columns)
            sides = [self._pairs(tile.rows, tile.columns, scores, tile.positive, tile.itself, answers)]
            if tile.rows != tile.columns:
                positive, itself = (None if mask is None else mask.T for mask in (tile.positive, tile.itself))
                sides.append(self._pairs(tile.columns, tile.rows, scores.T, positive, itself, answers))
            yield tile, rows, columns, sides

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
        return Pairs(anchors, scores, own, other, self._layout.numbers[rest].unsqueeze(0), positive, itself)


@dataclass(frozen=True)
class TiledPairs:
    """A loss over pairs of rows, with the score of two rows."""

    formula: Formula
    score: Score

    def travels(self, slice_size: int) -> bool:
        """See TiledLoss."""
        return can_travel(slice_size)

    def evaluate(self, embeddings: Tensor, labels: Tensor, group: Group) -> Found:
        """See TiledLoss; the formula has no weights of its own."""
        layout = Layout(labels, len(labels) // group.num_slices)
        order = Order(layout, group)
        with torch.no_grad():
            passes = Passes(
                self.formula, self.score, layout, sorted_rows(self.score, layout, embeddings, group, order), group
            )
            answers: dict[str, Tensor] = {}
            for statistics in self.formula.rounds:
                answers |= passes.collect(statistics, answers)
        leaves = {name: value.detach().requires_grad_() for name, value in answers.items()}
        with torch.enable_grad():
            loss = self.formula.loss(leaves, layout)
        own = own_rows(embeddings, rows_of(layout, group.owned), layout.size)
        if not loss.requires_grad:
            return loss.detach(), torch.zeros_like(own), []
        slopes = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True, allow_unused=True)
        with torch.no_grad():
            cotangents = order.back(passes.pull(answers, dict(zip(leaves, slopes, strict=True))))
        return loss.detach(), pull_prepare(self.score, own, cotangents, layout.slice_size), []
