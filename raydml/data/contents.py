"""Arrays, or sources that decode to arrays, in; one array per item out, each proved readable once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raydml.data.preprocessing import Preprocessing, Source
from raydml.errors import DataError

CACHE_BYTES = 2 << 30  # decoded pictures kept in memory
_CHUNK = 256  # pictures decoded before the next ones are begun
_WAY_OUT = "repair or remove it, or set `on_bad_item: skip` to leave such items out"


@dataclass(frozen=True)
class Checked:
    """What reading everything once showed."""

    kept: list[int]  # items that are good, in order
    digests: list[str]  # SHA-256 of each good item's array
    skipped: list[tuple[str, str]]  # (name, reason) of each bad one


class Sources(Protocol):
    """Anything that gives a source by its number: a list of paths, or a reader of entries."""

    def __getitem__(self, number: int, /) -> Source: ...


class Contents(Protocol):
    """Readable items, numbered from 0."""

    def read(self, item: int) -> NDArray[Any]:
        """The item's array: uint8 (H, W, C) or float32."""

    def check(self, skip: bool) -> Checked:
        """Read all; then only the good items exist, renumbered. The first bad one is a DataError unless `skip`."""


class Stored:
    """Items that lie in memory: `array` is uint8 (N, H, W, C) or float32 (N, ...)."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array

    def read(self, item: int) -> NDArray[Any]:
        """See Contents."""
        return np.asarray(self.array[item])

    def check(self, skip: bool) -> Checked:
        """See Contents; bad are vectors with NaN or infinities."""
        bad = np.flatnonzero(~np.isfinite(self.array).reshape(len(self.array), -1).all(axis=1)).tolist()
        if bad and not skip:
            shown = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
            raise DataError(
                f"{len(bad)} rows of inputs hold NaN or infinite values: rows {shown}; {_WAY_OUT}", rows=bad
            )
        kept = np.setdiff1d(np.arange(len(self.array)), bad).tolist()
        if bad:
            self.array = self.array[kept]
        return Checked(kept, [digest(row) for row in self.array], [(f"row {row}", "NaN or infinite") for row in bad])


class Repeated(Stored):
    """A few arrays (n, ...) that stand for any number of items: item i is the (i modulo n)-th."""

    def read(self, item: int) -> NDArray[Any]:
        """See Contents."""
        return super().read(item % len(self.array))


class Decoded:
    """Items decoded on reading; the first ones, up to `cache_bytes`, stay in memory from the check on.

    sources: what `preprocessing.decode` takes, one an item. threads: decoders at work at a time during the check.
    """

    def __init__(
        self,
        sources: Sources,
        names: Sequence[str],
        preprocessing: Preprocessing,
        threads: int = 0,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.sources, self.names, self.preprocessing = sources, names, preprocessing
        self.threads = threads or min(8, os.cpu_count() or 1)
        self.cache_bytes = cache_bytes
        self._numbers = list(range(len(names)))  # item -> position in sources
        self._cache: list[NDArray[Any]] = []

    def read(self, item: int) -> NDArray[Any]:
        """See Contents."""
        if 0 <= item < len(self._cache):
            return self._cache[item]
        return self._decode(self._numbers[item])

    def check(self, skip: bool) -> Checked:
        """See Contents."""
        checked = Checked([], [], [])
        with ThreadPoolExecutor(self.threads) as pool:
            for start in range(0, len(self._numbers), _CHUNK):
                chunk = self._numbers[start : start + _CHUNK]
                for number, result in zip(chunk, pool.map(self._attempt, chunk), strict=True):
                    self._enter(checked, number, result, skip)
        self._numbers = checked.kept
        return checked

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": []}

    def _enter(self, checked: Checked, number: int, result: NDArray[Any] | DataError, skip: bool) -> None:
        if isinstance(result, DataError):
            if not skip:
                raise DataError(f"{result}: {_WAY_OUT}", **result.data) from result
            checked.skipped.append((self.names[number], str(result)))
            return
        full = (len(self._cache) + 1) * result.nbytes > self.cache_bytes
        if len(self._cache) == len(checked.kept) and not full:
            self._cache.append(result)
        checked.kept.append(number)
        checked.digests.append(digest(result))

    def _attempt(self, number: int) -> NDArray[Any] | DataError:
        try:
            return self._decode(number)
        except DataError as error:
            return error

    def _decode(self, number: int) -> NDArray[Any]:
        try:
            return self.preprocessing.decode(self.sources[number])
        except DataError as error:
            name = self.names[number]
            raise DataError(str(error) if name in str(error) else f"{name}: {error}", item=name) from error


def digest(array: NDArray[Any]) -> str:
    """SHA-256 of the shape and the bytes of an array."""
    return hashlib.sha256(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes()).hexdigest()
