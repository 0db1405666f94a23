"""What a collection held at one sequence number: its segments, which of their rows are dead, and the unsealed rows.

A view never changes. `refreshed` makes the next one out of it by reading what the database says has happened since.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from raydml.errors import CollectionDamaged
from raydml.search.database import DATABASE, blob_crc, checked, crc, damaged
from raydml.search.items import Array, Metric
from raydml.search.nearest import Searched
from raydml.search.segments import Described, Segment

_ROOM = 8192  # rows; memory that no row has come to is not taken


@dataclass(frozen=True)
class State:
    """The one row that every change rewrites; all numbers only grow but `open_rows` and `points`."""

    sequence: int  # of the last change
    next_key: int  # of the next new point
    open_segment: int  # which unsealed rows belong to
    open_rows: int
    points: int

    def row(self) -> tuple[int, ...]:
        """As stored, with its checksum."""
        values = (self.sequence, self.next_key, self.open_segment, self.open_rows, self.points)
        return (*values, crc(1, *values))


@dataclass(frozen=True, eq=False)
class Unsealed:
    """Rows that only the database holds, in order of writing. Arrays have room at their end, which later views fill."""

    number: int
    count: int
    all_keys: Array
    all_written: Array
    all_vectors: Array
    all_faced: Array  # the same array where Faiss may see the vectors as given
    longest: float
    metric: Metric

    @classmethod
    def empty(cls, number: int, dimension: int, metric: Metric) -> Unsealed:
        """No rows yet."""
        vectors = np.empty((0, dimension), dtype=np.float32)
        faced = np.empty_like(vectors) if metric == "cosine" else vectors
        return cls(number, 0, np.empty(0, np.int64), np.empty(0, np.int64), vectors, faced, 0.0, metric)

    def __len__(self) -> int:
        return self.count

    @property
    def keys(self) -> Array:
        """Int64 (n)."""
        return self.all_keys[: self.count]

    @property
    def written(self) -> Array:
        """Int64 (n)."""
        return self.all_written[: self.count]

    @property
    def vectors(self) -> Array:
        """Float32 (n, d)."""
        return self.all_vectors[: self.count]

    @property
    def searched(self) -> Searched:
        """The vectors as Faiss sees them."""
        return Searched(self.vectors, self.all_faced[: self.count], self.longest, self.metric)

    def with_block(self, sequence: int, keys: Array, vectors: Array) -> Unsealed:
        """One more request's rows."""
        end = self.count + len(keys)
        room = self if end <= len(self.all_keys) else self._with_room(max(_ROOM, 2 * end))
        added = Searched.of(vectors, self.metric)
        here = slice(self.count, end)
        room.all_keys[here], room.all_written[here], room.all_vectors[here] = keys, sequence, vectors
        if room.all_faced is not room.all_vectors:
            room.all_faced[here] = added.faced
        return replace(room, count=end, longest=max(self.longest, added.longest))

    def _with_room(self, rows: int) -> Unsealed:
        def grown(array: Array) -> Array:
            larger = np.empty((rows, *array.shape[1:]), dtype=array.dtype)
            larger[: self.count] = array[: self.count]
            return larger

        vectors = grown(self.all_vectors)
        faced = vectors if self.all_faced is self.all_vectors else grown(self.all_faced)
        return replace(
            self, all_keys=grown(self.all_keys), all_written=grown(self.all_written),
            all_vectors=vectors, all_faced=faced,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Part:
    """Rows, and which of them are points still."""

    rows: Segment | Unsealed
    dead: Array  # bool, at least one for each row

    @cached_property
    def alive(self) -> Array:
        """Bool (n)."""
        return ~self.dead[: len(self.rows)]

    @cached_property
    def num_dead(self) -> int:
        """How many rows are no point's any more."""
        return int(np.count_nonzero(self.dead[: len(self.rows)]))

    def rows_of(self, keys: Array) -> Array:
        """The living row of each key, -1 where there is none."""
        if isinstance(self.rows, Segment):
            found = self.rows.rows_of(keys)
            return np.where(self.dead[found], -1, found) if self.num_dead else found
        held, rows = self._living
        if not len(held):
            return np.full(len(keys), -1)
        places = np.searchsorted(held, keys)
        return np.where(held.take(places, mode="clip") == keys, rows.take(places, mode="clip"), -1)

    @cached_property
    def _living(self) -> tuple[Array, Array]:
        """Keys of the living rows, ascending, and the rows."""
        rows = np.flatnonzero(self.alive)
        keys = self.rows.keys[rows]
        order = np.argsort(keys, kind="stable")  # fast for keys that ascend already, as most do
        return keys[order], rows[order]

    def with_dead(self, rows: Array) -> Part:
        """The same with some more rows dead; an array of its own, with room for later rows."""
        size = len(self.rows) if isinstance(self.rows, Segment) else len(self.rows.all_keys)
        dead = np.zeros(size, dtype=bool)
        dead[: min(size, len(self.dead))] = self.dead[:size]
        dead[rows] = True
        return Part(self.rows, dead)


@dataclass(frozen=True, eq=False)
class View:
    """A collection at one sequence number."""

    folder: Path
    metric: Metric
    dimension: int
    state: State = field(
        default_factory=lambda: State(0, 1, 0, 0, 0)
    )  # segment 0 is nobody's: everything is to be read
    parts: dict[int, Part] = field(default_factory=dict)  # by the number of the segment; the open one last

    def __len__(self) -> int:
        return self.state.points

    @property
    def unsealed(self) -> Part:
        """The open segment."""
        return self.parts[self.state.open_segment]

    def locate(self, keys: Array) -> dict[int, tuple[Array, Array]]:
        """Segment -> (places in `keys`, rows) of those of the keys whose point it holds."""
        places, found = np.arange(len(keys)), {}
        for number, part in reversed(self.parts.items()):  # the newest first: it is the likeliest to be asked for
            if not len(places) or not len(part.rows):
                continue
            rows = part.rows_of(keys if len(places) == len(keys) else keys[places])
            there = rows >= 0
            if there.all():
                found[number], places = (places, rows), places[:0]
            elif there.any():
                found[number], places = (places[there], rows[there]), places[~there]
        if len(places):
            raise damaged(self.folder / DATABASE, f"no segment holds the vectors of {len(places)} points")
        return found

    def vectors(self, keys: Array) -> tuple[Array, Array]:
        """Vectors (n, d) of these distinct keys, as given, and the sequence numbers that they were written with."""
        vectors = np.empty((len(keys), self.dimension), dtype=np.float32)
        written = np.empty(len(keys), dtype=np.int64)
        for number, (places, rows) in self.locate(keys).items():
            held = self.parts[number].rows
            vectors[places], written[places] = held.vectors[rows], held.written[rows]
        return vectors, written

    def refreshed(self, connection: sqlite3.Connection) -> View:
        """The collection as the connection's transaction sees it."""
        state = read_state(self.folder, connection)
        if state.sequence == self.state.sequence:
            return self
        parts = self._sealed(connection)
        same = state.open_segment == self.state.open_segment
        since = self.state.sequence if same else 0
        parts[state.open_segment] = self._opened(connection, state, since)
        fresh = [
            n for n, part in parts.items() if part is not self.parts.get(n) and not (same and n == state.open_segment)
        ]
        for number, rows in self._deaths(connection, parts, fresh):
            parts[number] = parts[number].with_dead(rows)
        view = replace(self, state=state, parts=parts)
        living = sum(len(part.rows) - part.num_dead for part in parts.values()) if not same else state.points
        if living != state.points:
            raise damaged(self.folder / DATABASE, f"it counts {state.points} points, and {living} rows are alive")
        return view

    def _sealed(self, connection: sqlite3.Connection) -> dict[int, Part]:
        parts: dict[int, Part] = {}
        for row in connection.execute("SELECT number, document, crc FROM segments ORDER BY number").fetchall():
            number, document = checked(self.folder, "segments", row)
            known = self.parts.get(number)
            if known is not None and isinstance(known.rows, Segment) and known.rows.described.document() == document:
                parts[number] = known
            else:
                segment = Segment(self.folder, number, Described(**json.loads(document)), self.metric)
                parts[number] = Part(segment, np.zeros(len(segment), dtype=bool))
        return parts

    def _opened(self, connection: sqlite3.Connection, state: State, since: int) -> Part:
        part = self.parts.get(state.open_segment) if since else None
        if part is None:
            part = Part(Unsealed.empty(state.open_segment, self.dimension, self.metric), np.zeros(0, dtype=bool))
        unsealed = part.rows
        assert isinstance(unsealed, Unsealed)
        query = "SELECT sequence, segment, keys, vectors, crc FROM blocks WHERE sequence > ? ORDER BY sequence"
        for sequence, segment, keys, vectors, mark in connection.execute(query, (since,)):
            if blob_crc(sequence, segment, keys, vectors) != mark or segment != state.open_segment:
                raise damaged(self.folder / DATABASE, f"the vectors of change {sequence} do not match their checksum")
            numbers = np.frombuffer(vectors, dtype="<f4").reshape(-1, self.dimension)
            unsealed = unsealed.with_block(sequence, np.frombuffer(keys, dtype="<i8"), numbers)
        if len(unsealed) != state.open_rows:
            raise damaged(self.folder / DATABASE, f"{len(unsealed)} of {state.open_rows} unsealed vectors are there")
        return Part(unsealed, part.dead).with_dead(np.empty(0, dtype=np.int64))

    def _deaths(
        self, connection: sqlite3.Connection, parts: dict[int, Part], fresh: list[int]
    ) -> list[tuple[int, Array]]:
        """(segment, rows) that died since this view; of `fresh` segments, all that ever did."""
        found: dict[int, list[Array]] = {}
        query = (
            "SELECT sequence, segment, rows, crc FROM deaths WHERE sequence > ? "
            "UNION SELECT sequence, segment, rows, crc FROM deaths WHERE segment IN (SELECT value FROM json_each(?))"
        )
        for sequence, segment, rows, mark in connection.execute(query, (self.state.sequence, json.dumps(fresh))):
            if blob_crc(sequence, segment, rows) != mark or segment not in parts:
                raise damaged(self.folder / DATABASE, f"the deletions of change {sequence} do not match their checksum")
            found.setdefault(segment, []).append(np.frombuffer(rows, dtype="<i4"))
        return [(number, np.concatenate(rows)) for number, rows in found.items()]


def read_state(folder: Path, connection: sqlite3.Connection) -> State:
    """The state that the connection's transaction sees."""
    columns = "only, sequence, next_key, open_segment, open_rows, points, crc"
    row: Any = connection.execute(f"SELECT {columns} FROM state").fetchone()
    if row is None:
        raise CollectionDamaged(f"{folder / DATABASE} is damaged: it holds no state")
    return State(*checked(folder, "state", row)[1:])
