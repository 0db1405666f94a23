"""After a failure: is the same request sent again, and when?"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import httpx2

if TYPE_CHECKING:
    from raydml.client.steps import Answer

# The server never saw the request.
UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
# The request is wrong, and will be the next time.
HOPELESS = (httpx2.LocalProtocolError, httpx2.UnsupportedProtocol)
BUSY, UNAVAILABLE, CONFLICT = 429, 503, 409
PASSING = frozenset({408, 502, 504})  # a server or a proxy in front of it gave up: what was asked may have been done


@dataclass(frozen=True)
class Retries:
    """How often, and with which pauses in seconds: `first` x 2, x 4, ... up to `longest`, half of each by chance.

    The server's Retry-After comes before these, where it is at most `patience`.
    """

    times: int = 4
    first: float = 0.25
    longest: float = 8.0
    patience: float = 60.0
    chance: Callable[[], float] = random.random
    clock: Callable[[], float] = time.monotonic

    def pause(self, failures: int, outcome: Answer | httpx2.TransportError | None, repeatable: bool) -> float | None:
        """Seconds until the request is sent again after so many failures before this one; None: give up.

        `repeatable`: doing it twice is as good as once. What was refused before it began is repeated in any case.
        `outcome` None is an answer that broke off without an error.
        """
        if failures >= self.times or not _passing(outcome, repeatable):
            return None
        backoff = min(self.longest, self.first * 2.0**failures)
        wanted = retry_after(outcome)
        if wanted is None:
            return backoff * (1 + self.chance()) / 2
        return wanted + self.first * self.chance() if wanted <= self.patience else None


def retry_after(outcome: object) -> float | None:
    """Seconds that the answer's Retry-After names, as a number or a date."""
    value: str = getattr(outcome, "headers", {}).get("retry-after", "")
    if value.isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _passing(outcome: Answer | httpx2.TransportError | None, repeatable: bool) -> bool:
    """Whether the same request may do better, and does no harm."""
    if outcome is None:
        return repeatable
    if isinstance(outcome, Exception):
        return isinstance(outcome, UNSENT) or (repeatable and not isinstance(outcome, HOPELESS))
    if outcome.status in (BUSY, UNAVAILABLE):
        ours = "application/problem+json" in outcome.headers.get("content-type", "")
        return ours or repeatable  # our own servers say so before they begin
    if outcome.status == CONFLICT:  # the same idempotency key is in progress
        return repeatable and "retry-after" in outcome.headers
    return repeatable and outcome.status in PASSING
