"""Immutable files of vectors: `vectors.npy` is what collections are made of, everything else of it is known by SHA-256.

segments/<name>/
    vectors.npy     float32 (n, d), as given, in order of their keys
    keys.npy        int64 (n), ascending: each point's number in order of insertion
    written.npy     int64 (n), the sequence number with which the vector was written
    ids.npy         int64 (n) where all ids are integers; else ids.jsonl and offsets.npy (n + 1)
    unit.npy        float32 (n, d), unit rows, for cosine where the vectors are not unit already; derived
    index.faiss     an approximate index, where one is worth it; derived
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from raydml.files import sha256_file
from raydml.search.approximate import Approximate
from raydml.search.database import damaged
from raydml.search.index_choice import build
from raydml.search.items import Array, Id, Metric
from raydml.search.nearest import Searched

SEGMENTS = "segments"
VECTORS, KEYS, WRITTEN, UNIT, INDEX = "vectors.npy", "keys.npy", "written.npy", "unit.npy", "index.faiss"
INTEGERS, NAMES, OFFSETS = "ids.npy", "ids.jsonl", "offsets.npy"
DERIVED = (UNIT, INDEX)


Rows = tuple[Array, Array, Array]  # vectors, keys, written


@dataclass(frozen=True)
class Described:
    """What the database says of a segment: its folder's name, its rows, the SHA-256 of each file, and its index."""

    name: str
    rows: int
    sha256: dict[str, str]
    longest: float  # no row that Faiss sees has a larger L2 norm
    index: dict[str, Any] = field(default_factory=dict)

    def document(self) -> str:
        """As stored."""
        return json.dumps(asdict(self))


class Segment:
    """The files of one segment, mapped; each is compared with its SHA-256 when it is first used."""

    def __init__(self, collection: Path, number: int, described: Described, metric: Metric) -> None:
        self.folder = collection / SEGMENTS / described.name
        self.number = number
        self.described = described
        self._metric = metric

    def __len__(self) -> int:
        return self.described.rows

    @cached_property
    def vectors(self) -> Array:
        """Float32 (n, d), as given."""
        return self._mapped(VECTORS)

    @cached_property
    def keys(self) -> Array:
        """Int64 (n), ascending."""
        return self._mapped(KEYS)

    @cached_property
    def written(self) -> Array:
        """Int64 (n)."""
        return self._mapped(WRITTEN)

    @cached_property
    def searched(self) -> Searched:
        """The vectors as Faiss sees them."""
        faced = self._mapped(UNIT) if UNIT in self.described.sha256 else self.vectors
        return Searched(self.vectors, faced, self.described.longest, self._metric)

    @cached_property
    def approximate(self) -> Approximate | None:
        """The index; None where the segment is always scanned."""
        return Approximate.read(self.path(INDEX), self.described.index) if INDEX in self.described.sha256 else None

    def rows_of(self, keys: Array) -> Array:
        """The row of each key, -1 where it has none."""
        if not len(self):
            return np.full(len(keys), -1)
        if self._first is not None:
            rows = keys - self._first
            return np.where((rows < 0) | (rows >= len(self)), -1, rows)
        rows = np.searchsorted(self.keys, keys)
        rows[self.keys.take(rows, mode="clip") != keys] = -1
        return rows

    def keys_of(self, rows: Array) -> Array:
        """The key of each row, -1 where it is -1."""
        if self._first is not None:
            return np.where(rows < 0, -1, rows + self._first)
        return np.where(rows < 0, -1, self.keys[rows])

    @cached_property
    def _first(self) -> int | None:
        """The lowest key where the keys follow one another, as they do until points are deleted or replaced."""
        first, last = int(self.keys[0]), int(self.keys[-1])
        return first if last - first == len(self) - 1 else None

    def ids(self, rows: Array) -> list[Id]:
        """The ids of these rows."""
        if INTEGERS in self.described.sha256:
            integers: list[Id] = self._integers[rows].tolist()
            return integers
        offsets, text = self._offsets, self._names
        return [json.loads(text[offsets[row] : offsets[row + 1]].tobytes()) for row in rows]

    def path(self, name: str) -> Path:
        """A file of the segment that has been compared with its SHA-256."""
        path = self.folder / name
        try:
            found = sha256_file(path)
        except OSError as error:
            if not self.folder.exists():
                raise FileNotFoundError(path) from error  # compacted away meanwhile: the caller looks again
            raise damaged(path, f"it cannot be read ({error.strerror})") from error
        if found != self.described.sha256[name]:
            way = "; Collection.rebuild() makes it again" if name in DERIVED else ""
            raise damaged(path, f"its SHA-256 is {found[:12]}, and {self.described.sha256[name][:12]} was written{way}")
        return path

    @cached_property
    def _integers(self) -> Array:
        return self._mapped(INTEGERS)

    @cached_property
    def _offsets(self) -> Array:
        return self._mapped(OFFSETS)

    @cached_property
    def _names(self) -> Array:
        return np.memmap(self.path(NAMES), dtype=np.uint8, mode="r")

    def _mapped(self, name: str) -> Array:
        array: Array = np.load(self.path(name), mmap_mode="r", allow_pickle=False)
        return array.view(np.ndarray)  # a memmap does more at every step


def write_segment(
    folder: Path, name: str, rows: Rows, ids: Sequence[Id], metric: Metric, recall: float | None = None
) -> Described:
    """Fill the empty `folder`, which the caller makes durable and gives its `name`; `rows` ascend by key."""
    vectors, keys, written = rows
    np.save(folder / VECTORS, vectors)
    np.save(folder / KEYS, keys)
    np.save(folder / WRITTEN, written)
    if all(isinstance(identifier, int) for identifier in ids):
        np.save(folder / INTEGERS, np.array(ids, dtype=np.int64))
    else:
        lines = [json.dumps(identifier).encode() for identifier in ids]
        (folder / NAMES).write_bytes(b"".join(lines))
        np.save(folder / OFFSETS, np.cumsum([0, *map(len, lines)], dtype=np.int64))
    return derive(folder, name, vectors, metric, recall)


def derive(folder: Path, name: str, vectors: Array, metric: Metric, recall: float | None = None) -> Described:
    """Write the derived files beside the others: `unit.npy` where Faiss must see other vectors than the given ones.

    With a `recall` to reach, also an approximate index, where one is worth it.
    """
    searched = Searched.of(vectors, metric)
    if searched.faced is not vectors:
        np.save(folder / UNIT, searched.faced)
    index = {} if recall is None else build(folder, INDEX, searched, recall)
    sha256 = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
    return Described(name, len(vectors), sha256, searched.longest, index)
