"""Rows against class vectors in tiles, and slopes of the scores back to both; never B x C scores.

Each worker takes its own rows against chunks of classes. Gradients of the class vectors are added up slice by slice
over the fixed tree, so that they too are the same for any number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from raydml.losses.tiled.exchange import own_rows
from raydml.losses.tiled.layout import COLUMNS, ROWS
from raydml.losses.tiled.scores import Score, pull_back, pull_prepare
from raydml.parallel import Group, TreeAccumulator, tree_sum

Slopes = Callable[[Tensor, slice, slice], Tensor]  # scores (r, c), rows, classes -> dL/d(score) (r, c)


class ClassScores:
    """Scores of the own rows against all class vectors, and gradients back to both."""

    def __init__(self, score: Score, loss: Any, embeddings: Tensor, size: int, group: Group) -> None:
        """Of embeddings of a batch in slices of `size` rows: of all, or of the own rows alone."""
        self._parameter, vectors = class_vectors(loss)
        self._score, self._group = score, group
        self.own = slice(group.owned.start * size, group.owned.stop * size)
        self._embeddings, self._size = own_rows(embeddings, self.own, size * group.num_slices), size
        with torch.enable_grad():
            self._graph = score.prepare(vectors)
        self.vectors = self._graph.detach()  # (C, D)
        self.rows = torch.cat(
            [score.prepare(rows) for rows in torch.split(self._embeddings, size)]
        ).detach()  # (own, D)

    def slices(self) -> Iterator[tuple[int, list[slice]]]:
        """Own slices with their row tiles, numbered from the first own row."""
        for slot, index in enumerate(self._group.owned):
            stop = (slot + 1) * self._size
            yield index, [slice(s, min(s + ROWS, stop)) for s in range(slot * self._size, stop, ROWS)]

    def chunks(self) -> Iterator[slice]:
        """Chunks of classes."""
        count = len(self.vectors)
        yield from (slice(start, min(start + COLUMNS, count)) for start in range(0, count, COLUMNS))

    def tile(self, rows: slice, classes: slice) -> Tensor:
        """(r, c) scores."""
        return self._score.tile(self.rows[rows], self.vectors[classes])

    def pull(self, slopes: Slopes) -> tuple[Tensor, list[tuple[nn.Parameter, Tensor]]]:
        """Gradients of own rows and of the parameter from `slopes(scores, rows, classes)`, dL/d(score) (r, c)."""
        of_rows = torch.zeros_like(self.rows)
        accumulator = TreeAccumulator(self._group.num_slices)
        for index, tiles in self.slices():
            of_vectors = torch.zeros_like(self.vectors)
            for rows in tiles:
                for classes in self.chunks():
                    scores = self.tile(rows, classes)
                    given = slopes(scores, rows, classes)
                    added = self._score.pull(self.rows[rows], self.vectors[classes], scores, given)
                    of_rows[rows] += added[0]
                    of_vectors[classes] += added[1]
            accumulator.add(index, [of_vectors])
        (total,) = tree_sum(accumulator, self._group)
        (gradient,) = pull_back([self._graph], [self._parameter], [total])
        return pull_prepare(self._score, self._embeddings, of_rows, self._size), [(self._parameter, gradient)]


def class_vectors(loss: Any) -> tuple[nn.Parameter, Tensor]:
    """The parameter, and as rows of one class each (C, D), part of its graph."""
    (parameter,) = loss.parameters()
    with torch.enable_grad():
        return parameter, parameter if hasattr(loss, "proxies") else parameter.T.contiguous()


def own_class(labels: Tensor, classes: slice) -> tuple[Tensor, Tensor]:
    """Rows whose class lies in the chunk, and its column there."""
    (rows,) = ((labels >= classes.start) & (labels < classes.stop)).nonzero(as_tuple=True)
    return rows, labels[rows] - classes.start
