"""Requests and a clock in; whether one more is taken now, or how long to wait, out: a token bucket for each key."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

KEPT = 10_000  # buckets; the one that was used the longest ago goes first, and is full again if its key comes back


@dataclass
class _Bucket:
    tokens: float
    filled: float  # seconds of the clock


class Buckets:
    """`rate` requests a second for each name, and `burst` at once; not for several threads."""

    def __init__(self, rate: float, burst: int) -> None:
        self.rate = rate
        self.burst = burst
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, name: str, now: float) -> float:
        """0 where the request is taken, else the seconds until the next one would be."""
        bucket = self._buckets.setdefault(name, _Bucket(self.burst, now))
        self._buckets.move_to_end(name)
        if len(self._buckets) > KEPT:
            self._buckets.popitem(last=False)
        bucket.tokens = min(self.burst, bucket.tokens + (now - bucket.filled) * self.rate)
        bucket.filled = now
        if bucket.tokens >= 1:
            bucket.tokens -= 1
            return 0.0
        return (1 - bucket.tokens) / self.rate
