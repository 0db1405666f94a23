"""Losses over every triplet, or those that a margin chooses: each positive of an anchor against each negative.

That is O(size of the class) work a score, and one number a positive of each anchor. The gradient of the cost towards
the scores is known as soon as the tile is: so one pass over all tiles collects the cost and its slopes, and what the
reducer makes of the cost multiplies the gradients in the end. A worker does it for the anchors of its own slices, and
holds their positives alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from raydml.losses.tiled.engine import Found
from raydml.losses.tiled.exchange import Meeting, Order, SortedRows, columns_of, own_rows, rows_of, sorted_rows
from raydml.losses.tiled.layout import Layout, Tile, can_travel
from raydml.losses.tiled.reduction import Reduce
from raydml.losses.tiled.row_sums import summed_gradients
from raydml.losses.tiled.scores import Score, pull_prepare
from raydml.parallel import Group


@dataclass(frozen=True)
class TripletRule:
    """What a triplet costs by its gap, farness of the negative minus that of the positive; all map (r, c) to (r, c).

    `chosen` says which are triplets: False for a gap that is NaN. `push` is -d(cost) / d(gap).
    """

    chosen: Callable[[Tensor], Tensor]
    cost: Callable[[Tensor], Tensor]
    push: Callable[[Tensor], Tensor]
    reduce: Reduce


@dataclass(frozen=True)
class TiledTriplets:
    """A loss over triplets, with the score of two rows."""

    rule: TripletRule
    score: Score

    def travels(self, slice_size: int) -> bool:
        """See TiledLoss."""
        return can_travel(slice_size)

    def evaluate(self, embeddings: Tensor, labels: Tensor, group: Group) -> Found:
        """See TiledLoss; there are no weights."""
        layout = Layout(labels, len(labels) // group.num_slices, one_sided=True)
        order = Order(layout, group)
        with torch.no_grad():
            rows = sorted_rows(self.score, layout, embeddings, group, order)
            anchors = Anchors(self.rule, self.score, layout, rows, group)
            gradients = anchors.pull_negatives()
            gradients += anchors.pull_positives()
            total, count, above = group.gather_slices(anchors.totals).sum(0)
        total.requires_grad_()
        with torch.enable_grad():
            loss = self.rule.reduce(total, count, above)
        (pressure,) = torch.autograd.grad(loss, total)
        own = own_rows(embeddings, rows_of(layout, group.owned), layout.size)
        cotangents = order.back(gradients) * pressure
        return loss.detach(), pull_prepare(self.score, own, cotangents, layout.slice_size), []


class Anchors:
    """The anchors of the own slices, in the order of classes, and what is known of their triplets."""

    def __init__(self, rule: TripletRule, score: Score, layout: Layout, rows: SortedRows, group: Group) -> None:
        self._rule, self._score, self._layout, self._rows, self._group = rule, score, layout, rows, group
        self._sign = -1 if score.similar else 1  # times the score: larger is farther
        self._first = rows_of(layout, group.owned).start
        count = len(rows.own)
        # By place in the class; NaN, in the own place and beyond the class, is no positive.
        self._positives = rows.own.new_full((count, layout.largest_class), torch.nan)
        self._slopes = torch.zeros_like(self._positives)  # d(sum of costs) / d(farness of each positive)
        self.totals = rows.own.new_zeros(count, 3)  # sum of costs, triplets, triplets that cost something
        self._look_at_positives()

    def _look_at_positives(self) -> None:
        for meetings, _ in self._rows.meetings():
            for meeting in meetings:
                for tile, rows, columns in self._tiles(meeting):
                    if tile.positive is not None:
                        anchors, rest = tile.positive.nonzero(as_tuple=True)
                        farness = self._score.tile(rows, columns).mul_(self._sign)
                        places = self._layout.places[tile.columns][rest]
                        self._positives[self._own(tile)][anchors, places] = farness[anchors, rest]

    def pull_negatives(self) -> Tensor:
        """What the farness of negatives gives to own rows; collects `totals`, and the slopes of positives."""

        def pulled(meeting: Meeting) -> Iterator[tuple[Tile, Tensor, Tensor]]:
            for tile, rows, columns in self._tiles(meeting):
                scores = self._score.tile(rows, columns)
                slopes = self._take(tile, scores * self._sign)
                if bool(slopes.any()):
                    yield tile, *self._score.pull(rows, columns, scores, slopes.mul_(-self._sign))

        return summed_gradients(self._rows, self._layout, self._group, pulled)

    def _take(self, tile: Tile, farness: Tensor) -> Tensor:
        """Take one tile's triplets in; how often and how strongly each score is pushed, (r, c)."""
        own, rule = self._own(tile), self._rule
        outside = tile.outside["negatives"]
        pushed = torch.zeros_like(farness)
        most = int(self._layout.num_positives[tile.rows].max()) + 1
        for place in range(most):
            gap = farness - self._positives[own, place : place + 1]
            keep = rule.chosen(gap) if outside is None else rule.chosen(gap) & ~outside
            cost = rule.cost(gap).masked_fill_(~keep, 0)
            push = rule.push(gap).masked_fill_(~keep, 0)
            counts = keep.sum(1), (cost > 0).sum(1)
            self.totals[own] += torch.stack([cost.sum(1), *(number.to(cost.dtype) for number in counts)], dim=1)
            self._slopes[own, place] += push.sum(1)
            pushed += push
        return pushed

    def pull_positives(self) -> Tensor:
        """What the farness of positives gives to own rows, once all negatives are taken in."""

        def pulled(meeting: Meeting) -> Iterator[tuple[Tile, Tensor, Tensor]]:
            for tile, rows, columns in self._tiles(meeting):
                if tile.positive is not None:
                    scores = self._score.tile(rows, columns)
                    anchors, rest = tile.positive.nonzero(as_tuple=True)
                    slopes = torch.zeros_like(scores)
                    slopes[anchors, rest] = self._slopes[self._own(tile)][
                        anchors, self._layout.places[tile.columns][rest]
                    ]
                    yield tile, *self._score.pull(rows, columns, scores, slopes.mul_(self._sign))

        return summed_gradients(self._rows, self._layout, self._group, pulled)

    def _tiles(self, meeting: Meeting) -> Iterator[tuple[Tile, Tensor, Tensor]]:
        for tile in self._layout.tiles_between(meeting.index, meeting.others):
            yield tile, self._rows.own[self._own(tile)], meeting.units[columns_of(meeting, tile, self._layout)]

    def _own(self, tile: Tile) -> slice:
        """A tile's rows among the own ones."""
        return slice(tile.rows.start - self._first, tile.rows.stop - self._first)
