"""A batch and a formula in; the loss and dL/d(own rows) out, in O(tile) memory and with exact gradients.

The tiles of a slice (see layout) are computed by the worker that owns it: once per round of statistics, and once for
the slopes. A tile adds to the statistics of its rows and of its columns, and its slopes to the gradients of both. Both
are kept apart by slice: rows belong to a worker, which takes the states of all slices and finishes them, and sums
gradients over the fixed tree of slices. No sum depends on the number of workers, nor on whether rows travel (see
exchange), so neither do the bits. A round costs two collectives, whatever it collects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from raydml.losses.tiled.exchange import Meeting, Order, SortedRows, columns_of, own_rows, rows_of, sorted_rows
from raydml.losses.tiled.layout import COLUMNS, ROWS, Layout, Tile, can_travel
from raydml.losses.tiled.row_sums import summed_gradients
from raydml.losses.tiled.scores import Score, pull_prepare
from raydml.losses.tiled.statistics import Answers, Pairs, Statistic
from raydml.parallel import Group

KEPT = ROWS * COLUMNS  # scores that a worker keeps from pass to pass, at most: those of one full tile

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


@dataclass(frozen=True)
class Scores:
    """A tile, the units of its rows (r, D) and of its columns (c, D), and their scores (r, c)."""

    tile: Tile
    rows: Tensor
    columns: Tensor
    scores: Tensor


class Passes:
    """The passes of one worker over one batch: the tiles of its own slices. All rows are in the order of classes."""

    def __init__(self, formula: Formula, score: Score, layout: Layout, rows: SortedRows, group: Group) -> None:
        self._formula, self._score, self._layout = formula, score, layout
        self._rows, self._group = rows, group
        self._units = dict(zip(group.owned, torch.split(rows.own, layout.slice_size), strict=True))
        self._keeps = len(rows.own) * layout.size <= 2 * KEPT  # of each two rows of the batch scores are held once
        self._kept: dict[tuple[int, int], list[Scores]] = {}

    def collect(self, statistics: Mapping[str, Statistic], answers: Answers) -> dict[str, Tensor]:
        """Answers of all rows, (B,) or (B, q)."""
        layout = self._layout
        everywhere = self._rows.own.new_empty(()).expand(layout.size, 1)
        states = {  # of each own slice
            index: {name: one.start(everywhere) for name, one in statistics.items()} for index in self._group.owned
        }
        for meetings, _ in self._rows.meetings():
            for meeting in meetings:
                for _, sides in self._tiles(meeting, statistics, answers):
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
        return self._gathered({name: torch.cat([answer[name] for answer in found]) for name in statistics})

    def _gathered(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Answers of own rows -> of all rows; in one message."""
        widths = [answer[0].numel() for answer in own.values()]
        everybody = self._group.gather_slices(torch.cat([answer.view(len(answer), -1) for answer in own.values()], 1))
        columns = torch.split(everybody, widths, 1)
        return {name: part.reshape(-1, *own[name].shape[1:]) for name, part in zip(own, columns, strict=True)}

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

        forces = {name: statistic.force(answers[name], gradients[name]) for name, statistic in statistics.items()}

        def pulled(meeting: Meeting) -> Iterator[tuple[Tile, Tensor, Tensor]]:
            for seen, sides in self._tiles(meeting, statistics, answers):
                slopes = self._slopes(statistics, sides, forces)
                yield seen.tile, *self._score.pull(seen.rows, seen.columns, seen.scores, slopes)

        return summed_gradients(self._rows, self._layout, self._group, pulled)

    @staticmethod
    def _slopes(statistics: Mapping[str, Statistic], sides: Sequence[Pairs], forces: Mapping[str, Tensor]) -> Tensor:
        """dL/d(score) of a tile, (r, c)."""
        total: Tensor | None = None
        for name, statistic in statistics.items():
            if sides[0].none(statistic.over):
                continue
            part = statistic.push(sides, [forces[name][pairs.anchors].unsqueeze(1) for pairs in sides])
            total = part.contiguous() if total is None else total.add_(part)
        assert total is not None, "a tile that no statistic looks at"
        return total

    def _tiles(
        self, meeting: Meeting, statistics: Mapping[str, Statistic], answers: Answers
    ) -> Iterator[tuple[Scores, list[Pairs]]]:
        """Tiles that a statistic looks at, each seen from its rows and from its columns."""
        everywhere = any(statistic.over != "positives" for statistic in statistics.values())
        for seen in self._scores(meeting, everywhere):
            if everywhere or seen.tile.same is not None:
                sides = [(False, seen.scores), (True, seen.scores.T)]
                yield seen, [Pairs(seen.tile, turned, scores, answers) for turned, scores in sides]

    def _scores(self, meeting: Meeting, everywhere: bool) -> Iterable[Scores]:
        """All tiles of a meeting, as they were kept where they are few; or those that hold positives."""
        key = meeting.index, meeting.others.start
        if self._keeps and key not in self._kept:
            self._kept[key] = list(self._computed(meeting, True))
        return self._kept[key] if self._keeps else self._computed(meeting, everywhere)

    def _computed(self, meeting: Meeting, everywhere: bool) -> Iterator[Scores]:
        for tile in self._layout.tiles_between(meeting.index, meeting.others):
            if everywhere or tile.same is not None:
                rows = self._units[meeting.index][self._layout.within(meeting.index, tile.rows)]
                columns = meeting.units[columns_of(meeting, tile, self._layout)]
                yield Scores(tile, rows, columns, self._score.tile(rows, columns))


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
