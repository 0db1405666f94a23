"""A block of queries and some gallery rows -> the pairs whose scores are high enough to matter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from raydml.evaluation.scores import Array, Scorer

_TILE = 2**19  # scores at a time: 2 MiB of float32
_GROUP = 8  # scores of which only the highest is looked at first


class Tiles:
    """Rough scores in space that is used again: fresh memory for each tile would cost more than looking at it does."""

    def __init__(self, scorer: Scorer, kind: Any) -> None:
        self._scorer, self._kind = scorer, kind
        self._space: dict[str, Array] = {}
        self._queries: Array = np.empty(0, dtype=np.int64)
        self._asked: Array = np.empty((0, scorer.gallery.shape[1]))

    def ask(self, queries: Array) -> None:
        """Rows of the scorer's queries (b,) that are scored from now on."""
        self._queries = queries
        self._asked = self._scorer.asked(queries, self._take("asked", len(queries), self._scorer.gallery.shape[1]))

    def parts(self, rows: Array) -> Iterator[Array]:
        """These gallery rows in parts, each for a tile."""
        width = max(1, _TILE // max(self._asked.shape))
        return (rows[start : start + width] for start in range(0, len(rows), width))

    def given(self, rows: Array, slot: int = 0) -> Array:
        """These gallery rows, scaled, until the slot is used again."""
        return self._scorer.given(rows, self._take(f"given {slot}", len(rows), self._asked.shape[1]))

    def pairs(
        self, rows: Array, given: Array, lowest: Array, columns: Array | float = np.inf
    ) -> tuple[Array, Array, Array]:
        """Place of the query, place of the gallery row among `rows` (w,) and shifted score, of some pairs.

        `given` are these rows, scaled. All whose score is at least their query's `lowest` (b,) or their row's `columns`
        (w,), and a few more.
        """
        scores = self._take("scores", len(self._asked), len(rows))
        self._scorer.products(self._asked, given, scores)
        self._scorer.shift(scores, self._queries, rows)
        places = self._few(scores, lowest, columns)
        if places is None:
            limits = np.minimum(lowest[:, None], columns, out=self._take("limits", *scores.shape))
            places = np.flatnonzero(scores >= limits)  # nonzero of the matrix takes ten times as long
        near, column = np.divmod(places, len(rows))
        return near, column, scores.reshape(-1)[places]

    def _few(self, scores: Array, lowest: Array, columns: Array | float) -> Array | None:
        """Flat places of these pairs, or None where they are not few; most groups are passed over by their highest."""
        rows, rest = divmod(len(scores), _GROUP)
        if rest:
            return None
        groups = scores.reshape(_GROUP, rows * scores.shape[1])
        highest = np.max(groups, axis=0, out=self._take("highest", rows, scores.shape[1]).reshape(-1))
        limits = self._take("limits", rows, scores.shape[1])
        limits = np.minimum(lowest.reshape(_GROUP, rows).min(axis=0)[:, None], columns, out=limits).reshape(-1)
        found = np.flatnonzero(highest >= limits)
        if len(found) * _GROUP > len(highest):
            return None
        reached = np.take(groups, found, axis=1) >= limits[found]
        member, group = np.divmod(np.flatnonzero(reached), max(1, len(found)))
        return np.asarray(member * len(highest) + found[group])

    def _take(self, name: str, rows: int, columns: int) -> Array:
        if name not in self._space or len(self._space[name]) < rows * columns:
            self._space[name] = np.empty(rows * columns, dtype=self._kind)
        return self._space[name][: rows * columns].reshape(rows, columns)
