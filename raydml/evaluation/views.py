"""Test embeddings -> what a person looks at: scores of pairs, and a map of the plane."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from raydml.evaluation.checks import squared_norms
from raydml.evaluation.scores import Array, Metric

FINE = 8192  # bins that shares of pairs are read from
SHOWN = 64  # bins that are drawn
_SCORES = 1 << 22  # at a time: 16 MiB of float32


@dataclass(frozen=True, eq=False)
class PairScores:
    """How many pairs of one class, and of two, have which score: counts in FINE bins of equal width."""

    low: float
    high: float
    positive: Array  # (FINE,) int64
    negative: Array

    def tar_at_far(self, rate: float) -> tuple[float, float] | None:
        """(share of positive pairs that are accepted, threshold) where at most `rate` of the negative pairs are.

        The threshold is the lowest edge of a bin that does it. None where there are fewer than 10 / rate negative
        pairs, as a share that rests on a handful of pairs says nothing.
        """
        accepted = np.append(np.cumsum(self.negative[::-1])[::-1], 0)  # at each edge and above it
        if accepted[0] * rate < 10 or not self.positive.sum():
            return None
        edge = int(np.argmax(accepted <= rate * accepted[0]))
        threshold = self.low + edge * (self.high - self.low) / FINE
        return float(self.positive[edge:].sum() / self.positive.sum()), threshold

    def drawn(self) -> tuple[Array, Array, Array]:
        """Edges (SHOWN + 1,) over the scores that there are, and in these bins the pairs of one class and of two."""
        there = np.flatnonzero(self.positive + self.negative)
        first, last = (int(there[0]), int(there[-1]) + 1) if len(there) else (0, FINE)
        places = np.linspace(first, last, SHOWN + 1)
        starts = np.ceil(places).astype(int)
        counts = [np.diff(np.append(0, np.cumsum(fine))[starts]) for fine in (self.positive, self.negative)]
        return self.low + starts * (self.high - self.low) / FINE, counts[0], counts[1]


def pair_scores(
    queries: Array, query_labels: Array, gallery: Array, gallery_labels: Array, own: Array, metric: Metric
) -> PairScores:
    """Scores of every query with every gallery row but its `own`, by whether both are of one class."""
    low, high = _bounds(queries, gallery, metric)
    positive, negative = np.zeros(FINE, np.int64), np.zeros(FINE, np.int64)
    for start, block in _blocks(queries, gallery, metric):
        here = slice(start, start + len(block))
        same = query_labels[here, None] == gallery_labels
        counted = np.ones_like(same)
        _hide(block, own[here])
        counted[np.isneginf(block)] = False
        bins = np.clip((block - low) * (FINE / (high - low)), 0, FINE - 1, where=counted, out=np.zeros_like(block))
        bins = bins.astype(np.int64)
        positive += np.bincount(bins[same & counted], minlength=FINE)
        negative += np.bincount(bins[~same & counted], minlength=FINE)
    return PairScores(low, high, positive, negative)


def projection(embeddings: Array) -> tuple[Array, Array]:
    """(n, 2) coordinates along the two directions of most variance, and the share (2,) of the variance of each.

    Principal component analysis; the signs are such that of each direction's coordinates the largest is positive.
    """
    centred = embeddings - embeddings.mean(axis=0, keepdims=True)
    values, vectors = np.linalg.eigh(centred.T.astype(np.float64) @ centred)
    order = np.argsort(-values)[:2]
    flat = centred @ vectors[:, order]
    flat = np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))
    largest = flat[np.abs(flat).argmax(axis=0), [0, 1]]
    shares = np.maximum(values[order], 0) / max(values.sum(), np.finfo(float).tiny)
    return flat * np.where(largest < 0, -1.0, 1.0), np.pad(shares, (0, 2 - len(shares)))


def evenly(number: int, most: int) -> Array:
    """At most so many of the numbers 0, 1, ..., number - 1, evenly spaced: the same for the same data."""
    return np.unique(np.linspace(0, number - 1, min(number, most)).round().astype(np.int64))


def merged(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """The first, and behind them those of the second that are not among them."""
    return list(dict.fromkeys([*first, *second]))


def _blocks(queries: Array, gallery: Array, metric: Metric) -> Iterator[tuple[int, Array]]:
    """Scores of some queries with the whole gallery at a time, float32."""
    left, right = (torch.from_numpy(np.ascontiguousarray(rows, np.float32)) for rows in (queries, gallery))
    if metric == "cosine":
        left, right = torch.nn.functional.normalize(left), torch.nn.functional.normalize(right)
    step = max(1, _SCORES // max(1, len(gallery)))
    for start in range(0, len(left), step):
        part = left[start : start + step]
        if metric == "cosine":
            yield start, (part @ right.T).numpy()
        else:
            yield start, -torch.cdist(part, right, p=2.0 if metric == "euclidean" else 1.0).numpy()


def _bounds(queries: Array, gallery: Array, metric: Metric) -> tuple[float, float]:
    """What no score is below or above."""
    if metric == "cosine":
        return -1.0, 1.0
    if metric == "euclidean":
        sizes = [float(np.sqrt(squared_norms("embeddings", rows).max(initial=0.0))) for rows in (queries, gallery)]
    else:
        sizes = [float(np.abs(rows).sum(axis=1).max(initial=0.0)) for rows in (queries, gallery)]
    return -(sum(sizes) or 1.0), 0.0


def _hide(block: Array, own: Array) -> None:
    """Each query's own row counts for nothing."""
    there = np.flatnonzero(own >= 0)
    block[there, own[there]] = -np.inf
