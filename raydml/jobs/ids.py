"""The time -> ids such as `job_01jd8x...`: a prefix and 26 characters that sort by time (a ULID in lower case)."""

from __future__ import annotations

import secrets
import threading
import time
from typing import Literal

Prefix = Literal["job", "key", "prj", "dst", "mdl", "whk", "dlv", "upl", "sup"]

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: without i, l, o and u
_RANDOM_BITS = 80
PATTERN = r"[0-9abcdefghjkmnpqrstvwxyz]{26}"  # what follows `job_`
DEFAULT_PROJECT = "prj_" + "0" * 26  # whose everything is where nobody has made projects

_lock = threading.Lock()
_last = 0


def new_id(prefix: Prefix, now_ms: int | None = None) -> str:
    """An id that nothing else has; later ones of this process sort behind, others by their millisecond."""
    global _last
    with _lock:
        fresh = (now_ms if now_ms is not None else time.time_ns() // 10**6) << _RANDOM_BITS
        _last = max(fresh | secrets.randbits(_RANDOM_BITS), _last + 1)
        value = _last
    return f"{prefix}_{''.join(_ALPHABET[value >> shift & 31] for shift in range(125, -1, -5))}"


def born_at(id: str) -> int:
    """When an id was made, in milliseconds since 1970."""
    value = 0
    for letter in id.rpartition("_")[2]:
        value = value << 5 | _ALPHABET.index(letter)
    return value >> _RANDOM_BITS


def milliseconds() -> int:
    """Now, in whole milliseconds since 1970, UTC: the unit of every time in the database."""
    return time.time_ns() // 10**6
