"""Indexed fields of payloads: one row of the database for each value of a point, kept with every change.

A path such as "camera.name" goes down into objects, and through lists to each of their elements. A field's values are
all that the path leads to; of a list, the list's elements too.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from raydml.errors import CollectionError

if TYPE_CHECKING:
    from raydml.search.changes import Point

Scalar = str | int | float | bool | None


def values_at(payload: Any, path: str) -> list[Any]:
    """Everything that the path leads to; [] where the field is missing. A key that holds dots itself is found too."""
    return list(_walk(payload, path))


def typed(value: Any) -> tuple[str, Scalar]:
    """A scalar with its kind, so that true is not 1; all numbers are of one kind."""
    if isinstance(value, bool):
        return "boolean", int(value)
    if value is None:
        return "null", 0
    if isinstance(value, str):
        return "string", value
    return "number", value if isinstance(value, float) or abs(value) < 2**63 else float(value)


def fields(connection: sqlite3.Connection) -> list[str]:
    """The indexed fields."""
    return [field for (field,) in connection.execute("SELECT field FROM indexed").fetchall()]


def create(connection: sqlite3.Connection, field: str) -> None:
    """Index a field, of all points that are there and all that come; nothing happens where it is indexed already."""
    if not isinstance(field, str) or not field:
        raise CollectionError(f"an index needs the name of a field, not {field!r}")
    if field in fields(connection):
        return
    connection.execute("INSERT INTO indexed VALUES (?)", (field,))
    rows = connection.execute("SELECT key, payload FROM points").fetchall()
    connection.executemany(
        "INSERT INTO field_values VALUES (?, ?, ?, ?)",
        ((field, kind, value, key) for key, text in rows for kind, value in _values(orjson.loads(text), field)),
    )


def add(connection: sqlite3.Connection, fields: Sequence[str], points: Iterable[Point]) -> None:
    """Enter the points' values of these fields."""
    if fields:
        connection.executemany("INSERT INTO field_values VALUES (?, ?, ?, ?)", rows(fields, points))


def remove(connection: sqlite3.Connection, fields: Sequence[str], points: Iterable[Point]) -> None:
    """Take out the points' values of these fields."""
    if fields:
        connection.executemany(
            "DELETE FROM field_values WHERE field = ? AND kind = ? AND value = ? AND key = ?", rows(fields, points)
        )


def facet(connection: sqlite3.Connection, field: str, limit: int) -> list[tuple[Scalar, int]]:
    """Values of an indexed field with their number of points, the most frequent first."""
    query = (
        "SELECT kind, value, count(*) AS number FROM field_values WHERE field = ? GROUP BY kind, value "
        "ORDER BY number DESC, kind, value LIMIT ?"
    )
    return [(untyped(kind, value), number) for kind, value, number in connection.execute(query, (field, limit))]


def untyped(kind: str, value: Scalar) -> Scalar:
    """The inverse of `typed`."""
    return {"boolean": bool(value), "null": None}.get(kind, value)


def _values(payload: Any, field: str) -> set[tuple[str, Scalar]]:
    """(kind, value) of each scalar that the field leads to, and of the elements of lists."""
    found = set()
    for value in values_at(payload, field):
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, dict | list):
                found.add(typed(one))
    return found


def rows(fields: Sequence[str], points: Iterable[Point]) -> Iterator[tuple[str, str, Scalar, int]]:
    """What the index holds of these points: field, kind, value and key."""
    for point in points:
        payload = orjson.loads(point.payload)
        for field in fields:
            for kind, value in _values(payload, field):
                yield field, kind, value, point.key


def _walk(value: Any, path: str) -> Iterator[Any]:
    if isinstance(value, list):
        for element in value:
            yield from _walk(element, path)
    if not isinstance(value, dict):
        return
    if path in value:
        yield value[path]
    for place, character in enumerate(path):
        if character == "." and path[:place] in value:
            yield from _walk(value[path[:place]], path[place + 1 :])
