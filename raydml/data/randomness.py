"""A key and counters in, random numbers out: stateless, so any number can be drawn first, by any process.

Number `counter` of a stream is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) at position `counter`, from a start
that is a hash of (seed, purpose, position). The bits depend on no library's version.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def stream_key(seed: int, purpose: str, *position: int) -> int:
    """The 64-bit start of the stream named by (seed, purpose, position)."""
    name = "/".join(map(str, (seed, purpose, *position)))
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def random_bits(key: int, counters: NDArray[np.int64]) -> NDArray[np.uint64]:
    """64 random bits for each counter (any shape)."""
    state = np.uint64(key) + (counters.astype(np.uint64) + np.uint64(1)) * _GOLDEN  # modulo 2^64
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return np.asarray(state ^ (state >> np.uint64(31)))


def uniforms(key: int, counters: NDArray[np.int64]) -> NDArray[np.float64]:
    """A number in [0, 1) for each counter (any shape)."""
    return np.asarray((random_bits(key, counters) >> np.uint64(11)) * 2.0**-53)


def permutation(key: int, size: int) -> NDArray[np.int64]:
    """The numbers 0..size-1 in random order."""
    return np.argsort(random_bits(key, np.arange(size)), kind="stable")
