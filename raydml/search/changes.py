"""One change each, within an open transaction: rows of the database, from what the view before it says."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, repeat
from typing import Any, NamedTuple

import numpy as np
import orjson

from raydml.errors import CollectionDamaged
from raydml.search import payload_index
from raydml.search.database import blob_crc, crc
from raydml.search.items import Array, Id, Payload
from raydml.search.view import State, View

_BLOCK_ROWS = 8192  # vectors of one row of the database at most: SQLite's limit is 1 GB
_AT_ONCE = 8192  # ids or keys in one query


class Point(NamedTuple):
    """A row of `points`."""

    key: int
    id: Id
    payload: str
    sequence: int
    written: int

    def row(self) -> tuple[Any, ...]:
        """As stored, with its checksum."""
        return (*self, crc(*self))


@dataclass(frozen=True)
class Change:
    """A transaction's connection and the view before the change; every change takes the next sequence number."""

    connection: sqlite3.Connection
    view: View

    @property
    def sequence(self) -> int:
        """The number of this change."""
        return self.view.state.sequence + 1

    def upsert(self, ids: Sequence[Id], vectors: Array, payloads: Sequence[str]) -> int:
        """Insert points, or replace the vector and payload of those that are there; gives the last sequence number.

        `payloads` are JSON.
        """
        known = {point.id: point for point in points_by_id(self.connection, ids)}
        state = self.view.state
        if known:
            self._kill(np.array([point.key for point in known.values()], dtype=np.int64))
        keys, next_key = self._keys(ids, known)
        sequence, blocks = state.sequence, []
        points: list[Point] = []
        for start in range(0, len(ids), _BLOCK_ROWS):
            sequence += 1
            here = slice(start, start + _BLOCK_ROWS)
            numbers = repeat(sequence)
            points += map(Point._make, zip(keys[here], ids[here], payloads[here], numbers, numbers, strict=False))
            block = (sequence, state.open_segment, np.array(keys[here], "<i8").tobytes(),
                     vectors[here].astype("<f4", copy=False).tobytes())  # fmt: skip
            blocks.append((*block, blob_crc(*block)))
        self.connection.executemany("INSERT INTO blocks VALUES (?, ?, ?, ?, ?)", blocks)
        fields = payload_index.fields(self.connection)
        payload_index.remove(self.connection, fields, known.values())
        self._put(points)
        payload_index.add(self.connection, fields, points)
        self._advance(
            sequence=sequence, next_key=next_key, open_rows=state.open_rows + len(ids),
            points=state.points + len(ids) - len(known),
        )  # fmt: skip
        return sequence

    def delete(self, ids: Sequence[Id]) -> int:
        """Remove points; gives how many of the ids were there."""
        known = points_by_id(self.connection, ids)
        if known:
            keys = [point.key for point in known]
            self._kill(np.array(keys, dtype=np.int64))
            payload_index.remove(self.connection, payload_index.fields(self.connection), known)
            self.connection.executemany("DELETE FROM points WHERE key = ?", [(key,) for key in keys])
            self._advance(sequence=self.sequence, points=self.view.state.points - len(keys))
        return len(known)

    def set_payload(self, ids: Sequence[Id], payload: Payload, merge: bool) -> int:
        """Give points another payload, or add its fields to theirs; gives how many of the ids were there."""
        known = points_by_id(self.connection, ids)
        if known:
            fields = payload_index.fields(self.connection)
            payload_index.remove(self.connection, fields, known)
            changed = [
                point._replace(
                    sequence=self.sequence,
                    payload=orjson.dumps({**orjson.loads(point.payload), **payload} if merge else payload).decode(),
                )
                for point in known
            ]
            self._put(changed)
            payload_index.add(self.connection, fields, changed)
            self._advance(sequence=self.sequence)
        return len(known)

    def _keys(self, ids: Sequence[Id], known: Mapping[Id, Point]) -> tuple[Sequence[int], int]:
        """The key of each id, new ones for those that are not known; and the number of the next new key."""
        first = self.view.state.next_key
        if not known:
            return range(first, first + len(ids)), first + len(ids)
        fresh = count(first)
        return [known[name].key if name in known else next(fresh) for name in ids], next(fresh)

    def _put(self, points: Iterable[Point]) -> None:
        self.connection.executemany(
            "INSERT OR REPLACE INTO points VALUES (?, ?, ?, ?, ?, ?)", [point.row() for point in points]
        )

    def _kill(self, keys: Array) -> None:
        rows = []
        for number, (_, dead) in self.view.locate(keys).items():
            row = (self.sequence, number, dead.astype("<i4").tobytes())
            rows.append((*row, blob_crc(*row)))
        self.connection.executemany("INSERT INTO deaths VALUES (?, ?, ?, ?)", rows)

    def _advance(self, **values: int) -> None:
        write_state(self.connection, replace(self.view.state, **values))


def write_state(connection: sqlite3.Connection, state: State) -> None:
    """Replace the one row of `state`."""
    connection.execute("INSERT OR REPLACE INTO state VALUES (1, ?, ?, ?, ?, ?, ?)", state.row())


def points_by_id(connection: sqlite3.Connection, ids: Sequence[Id]) -> list[Point]:
    """The points that have one of these ids, in any order."""
    return _points(connection, "id", ids)


def points_by_key(connection: sqlite3.Connection, keys: Sequence[int]) -> list[Point]:
    """The points that have one of these keys, in any order."""
    return _points(connection, "key", keys)


def _points(connection: sqlite3.Connection, column: str, values: Sequence[Any]) -> list[Point]:
    columns = "key, id, payload, sequence, written, crc"
    query = f"SELECT {columns} FROM points WHERE {column} IN (SELECT value FROM json_each(?))"
    found = []
    for start in range(0, len(values), _AT_ONCE):
        rows = connection.execute(query, (json.dumps(values[start : start + _AT_ONCE]),)).fetchall()
        found += [point_of(row) for row in rows]
    return found


def point_of(row: tuple[Any, ...]) -> Point:
    """A row of `points`; CollectionDamaged where it is damaged."""
    values = row[:-1]
    if crc(*values) != row[-1]:
        raise CollectionDamaged(
            f"the collection is damaged: point {row[0]} does not match its checksum; restore it from a snapshot"
        )
    return Point._make(values)
