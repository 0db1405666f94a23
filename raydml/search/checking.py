"""A reading of a collection -> nothing, or the CollectionError that names what is damaged: every byte that matters."""

from __future__ import annotations

from collections import Counter

import numpy as np

from raydml.errors import CollectionDamaged
from raydml.search import payload_index
from raydml.search.changes import Point, point_of
from raydml.search.database import DATABASE, checked, damaged
from raydml.search.reading import Reading
from raydml.search.segments import SEGMENTS, Segment
from raydml.search.view import View


def check(reading: Reading) -> None:
    """Check the database's structure, every row's checksum, every file's SHA-256, and that they agree."""
    folder, connection = reading.view.folder, reading.connection
    problems = [problem for (problem,) in connection.execute("PRAGMA integrity_check").fetchall()]
    if problems != ["ok"]:
        raise damaged(folder / DATABASE, problems[0])
    for row in connection.execute("SELECT only, document, crc FROM facts").fetchall():
        checked(folder, "facts", row)
    view = View(folder, reading.view.metric, reading.view.dimension).refreshed(connection)  # reads it all again
    points = [point_of(row) for row in connection.execute(_POINTS).fetchall()]
    _check_files(view)
    _check_rows(view, points)
    _check_index(reading, points)


_POINTS = "SELECT key, id, payload, sequence, written, crc FROM points ORDER BY key"


def _check_files(view: View) -> None:
    for part in view.parts.values():
        if isinstance(part.rows, Segment):
            for name in part.rows.described.sha256:
                try:
                    part.rows.path(name)
                except FileNotFoundError as error:
                    raise damaged(view.folder / SEGMENTS / part.rows.described.name, "it is missing") from error


def _check_rows(view: View, points: list[Point]) -> None:
    """Every point has its one living row, of its own writing and id; and there are no others."""
    path = view.folder / DATABASE
    living = [np.flatnonzero(part.alive) for part in view.parts.values()]
    keys = np.concatenate([part.rows.keys[rows] for part, rows in zip(view.parts.values(), living, strict=True)])
    written = np.concatenate([part.rows.written[rows] for part, rows in zip(view.parts.values(), living, strict=True)])
    order = np.argsort(keys, kind="stable")
    found = list(zip(keys[order].tolist(), written[order].tolist(), strict=True))
    if found != [(point.key, point.written) for point in points] or len(points) != view.state.points:
        raise damaged(path, f"{len(points)} points and {len(found)} living rows do not belong together")
    ids = {point.key: point.id for point in points}
    for part, rows in zip(view.parts.values(), living, strict=True):
        if isinstance(part.rows, Segment):
            named = [ids[key] for key in part.rows.keys[rows].tolist()]
            if named != part.rows.ids(rows):
                raise damaged(part.rows.folder, "its ids are not those of its points")


def _check_index(reading: Reading, points: list[Point]) -> None:
    fields = payload_index.fields(reading.connection)
    expected = Counter(payload_index.rows(fields, points))
    stored = Counter(reading.connection.execute("SELECT field, kind, value, key FROM field_values").fetchall())
    if expected != stored:
        fields = sorted({row[0] for row in (expected - stored) + (stored - expected)})
        raise CollectionDamaged(
            f"the index of {fields} in {reading.view.folder / DATABASE} is damaged; restore a snapshot"
        )
