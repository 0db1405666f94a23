"""A key and counters in, random numbers out: stateless, so any number can be drawn first, by any process.

Number `counter` of a stream is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) at position `counter`, from a start
that is a hash of (seed, purpose, position). The bits depend on no library's version.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_LN_2 = 0.6931471805599453
_ROOT_OF_HALF = 0.7071067811865476


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


def exponentials(key: int, counters: NDArray[np.int64]) -> NDArray[np.float64]:
    """A number of the standard exponential distribution, -ln(u) with u in (0, 1], for each counter (any shape)."""
    return -logarithm(np.asarray(((random_bits(key, counters) >> np.uint64(11)) + np.uint64(1)) * 2.0**-53, np.float64))


def logarithm(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """ln x = e ln 2 + 2 artanh((m - 1) / (m + 1)) of x = m 2^e > 0 with m in [sqrt(1/2), sqrt(2)).

    Libraries round their logarithms one way or another; these operations IEEE 754 rounds the same way everywhere.
    """
    mantissa, exponent = np.frexp(numbers)  # mantissa in [1/2, 1)
    low = mantissa < _ROOT_OF_HALF
    mantissa, exponent = np.where(low, 2 * mantissa, mantissa), exponent - low
    ratio = (mantissa - 1) / (mantissa + 1)
    series = np.zeros_like(ratio)
    for odd in range(23, 0, -2):  # artanh(r) / r = 1 + r^2 / 3 + r^4 / 5 + ...
        series = series * (ratio * ratio) + 1 / odd
    return np.asarray(exponent * _LN_2 + 2 * ratio * series)


def smallest(numbers: NDArray[Any], count: int) -> NDArray[np.int64]:
    """(count,) positions of the smallest of (N,) numbers, smallest first, the earlier of equals first; count <= N."""
    bound = np.partition(numbers, count - 1)[count - 1]
    places = np.flatnonzero(numbers <= bound)
    return places[np.argsort(numbers[places], kind="stable")[:count]]


def drawn(key: int, size: int, count: int) -> NDArray[np.int64]:
    """The first `count` of `permutation(key, size)`, without the rest."""
    return smallest(random_bits(key, np.arange(size)), count)


def permutation(key: int, size: int) -> NDArray[np.int64]:
    """The numbers 0..size-1 in random order."""
    return np.argsort(random_bits(key, np.arange(size)), kind="stable")
