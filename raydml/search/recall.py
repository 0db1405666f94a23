"""Hits found and hits that were to be found -> recall with its interval, also of the searches that people really do."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

from raydml.search.items import Array

_Z = 1.959964  # of 95 %


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion (E. B. Wilson, 1927); (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    share, square = hits / trials, _Z**2 / trials
    middle = (share + square / 2) / (1 + square)
    half = _Z * math.sqrt(share * (1 - share) / trials + square / (4 * trials)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def num_common(found: Array, truth: Array) -> int:
    """How many of each query's true neighbours (nq, k), -1 for none, are among those found (nq, k)."""
    matches = (found[:, :, None] == truth[:, None, :]) & (truth[:, None, :] >= 0)
    return int(matches.any(axis=1).sum())


@dataclass(frozen=True)
class Recall:
    """Of the hits that an exact search gives, the share that the approximate one gave, with its 95 % interval."""

    queries: int  # searched approximately
    sampled: int  # of these, searched exactly too
    recall: float | None
    low: float
    high: float


class LiveRecall:
    """Of so many approximate queries, one is to be searched exactly too; fewer where that would take long.

    Of a batch, several are sampled at once, and the next ones later: a scan for one query alone takes many times as
    long as for one of several.
    """

    def __init__(self, every: int = 1000, share: float = 0.01, at_once: int = 16) -> None:
        """`share`: of the time of all searches, what the samples may take; `at_once`: at most, of one batch."""
        self.every = every
        self.share = share
        self.at_once = at_once
        self._lock = threading.Lock()
        self._queries = self._sampled = self._hits = self._trials = 0
        self._due = 0.0  # samples

    def due(self, queries: int, cost: float = 0.0) -> int:
        """Count a batch of approximate queries; how many of them are to be sampled, each `cost` times a query's."""
        wanted = min(queries, self.at_once)
        with self._lock:
            self._queries += queries
            self._due += queries / max(self.every, cost / self.share)
            if self._due < wanted:
                return 0
            self._due %= wanted  # what a smaller batch could not take is not made up for
            return wanted

    def add(self, queries: int, hits: int, trials: int) -> None:
        """Count sampled queries: how many of their true neighbours were found."""
        with self._lock:
            self._sampled += queries
            self._hits += hits
            self._trials += trials

    def estimate(self) -> Recall:
        """Of all that was counted."""
        with self._lock:
            low, high = wilson(self._hits, self._trials)
            share = self._hits / self._trials if self._trials else None
            return Recall(self._queries, self._sampled, share, low, high)
