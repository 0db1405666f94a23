"""Answers -> how many there were of each route and how long they took."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict


class Requests:
    """What was answered, by route; counted on one event loop, copied on any thread."""

    BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)  # seconds

    def __init__(self) -> None:
        self.answered: Counter[tuple[str, str, str]] = Counter()  # method, route, status
        self.seconds: dict[str, float] = defaultdict(float)
        self.buckets: dict[str, list[int]] = defaultdict(lambda: [0] * (len(self.BOUNDS) + 1))

    def add(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one."""
        self.answered[method, route, str(status)] += 1
        self.seconds[route] += seconds
        self.buckets[route][bisect_left(self.BOUNDS, seconds)] += 1

    def copy(self) -> Requests:
        """As it is now. A dictionary is copied without a switch of threads, while answers go on being counted."""
        made = Requests()
        made.answered = self.answered.copy()
        made.seconds = self.seconds.copy()
        made.buckets = self.buckets.copy()
        return made
