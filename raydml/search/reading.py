"""One transaction's look at a collection: points by id, by key and in order, all of one sequence number."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from raydml.errors import CollectionError
from raydml.search.changes import Point, point_of, points_by_id, points_by_key
from raydml.search.database import DATABASE, damaged
from raydml.search.items import Array, Id, Item
from raydml.search.segments import Segment
from raydml.search.view import View


@dataclass(frozen=True)
class Reading:
    """A read transaction, and the view of its sequence number."""

    connection: sqlite3.Connection
    view: View

    def keys(self, ids: Sequence[Id]) -> Array:
        """Int64 (n); CollectionError where an id is unknown."""
        known = {point.id: point.key for point in points_by_id(self.connection, ids)}
        unknown = [identifier for identifier in ids if identifier not in known]
        if unknown:
            raise CollectionError(f"{len(unknown)} ids are not in the collection: {unknown[:10]}", ids=unknown[:10])
        return np.array([known[identifier] for identifier in ids], dtype=np.int64)

    def vectors(self, keys: Array) -> Array:
        """Float32 (n, d) of these keys, which may repeat."""
        distinct, places = np.unique(keys, return_inverse=True)
        return self.view.vectors(distinct)[0][places]

    def points(self, keys: Array) -> dict[int, Point]:
        """By key, of distinct ones. CollectionError where a row that was found is no point: its deletion was lost."""
        found = {point.key: point for point in points_by_key(self.connection, keys.tolist())}
        if len(found) != len(keys):
            raise damaged(self.view.folder / DATABASE, f"{len(keys) - len(found)} rows that were found are no points")
        return found

    def ids(self, keys: Array) -> list[Id]:
        """Of points that are there: segments keep their ids, the database has those of unsealed rows."""
        located = self.view.locate(keys)
        found: list[Id] = [0] * len(keys)
        for number, (places, rows) in located.items():
            held = self.view.parts[number].rows
            if isinstance(held, Segment):
                names = held.ids(rows)
            else:
                points = self.points(np.unique(keys[places]))
                names = [points[key].id for key in keys[places].tolist()]
            if len(located) == 1:
                return names
            for place, name in zip(places.tolist(), names, strict=True):
                found[place] = name
        return found

    def items(self, points: Sequence[Point]) -> list[Item]:
        """The points with their vectors."""
        vectors, written = self.view.vectors(np.array([point.key for point in points], dtype=np.int64))
        if [point.written for point in points] != written.tolist():
            raise damaged(self.view.folder / DATABASE, "vectors are not those that their points were written with")
        return [
            Item(point.id, vector, orjson.loads(point.payload), point.sequence)
            for point, vector in zip(points, vectors, strict=True)
        ]

    def all_payloads(self) -> Iterator[tuple[Point, Any]]:
        """Every point with its payload, in order of insertion."""
        for point in self.after(0, -1):
            yield point, orjson.loads(point.payload)

    def after(self, key: int, limit: int) -> list[Point]:
        """The next points in order of insertion; -1: all."""
        query = "SELECT key, id, payload, sequence, written, crc FROM points WHERE key > ? ORDER BY key LIMIT ?"
        return [point_of(row) for row in self.connection.execute(query, (key, limit)).fetchall()]
