"""Unsealed rows -> a segment's files, and the files that no longer belong to anybody -> nothing."""

from __future__ import annotations

import json
import shutil
import sqlite3
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from raydml.errors import CollectionError
from raydml.files import sweep, whole_folder
from raydml.search.changes import Change, write_state
from raydml.search.database import DATABASE, crc, damaged
from raydml.search.items import Id
from raydml.search.segments import SEGMENTS, Described, write_segment
from raydml.search.view import View
from raydml.search.writer import writing

COMPACTING = "COMPACTING"  # held while a segment is on disk that the database does not know yet


def seal(change: Change) -> int:
    """Move the unsealed rows into a segment of their own, without those that are dead; gives their number."""
    view, state = change.view, change.view.state
    part = view.unsealed
    if not len(part.rows):
        return 0
    living = np.flatnonzero(part.alive)
    living = living[np.argsort(part.rows.keys[living])]
    if len(living):
        keys = part.rows.keys[living]
        rows = part.rows.vectors[living], keys, part.rows.written[living]
        name = new_name()
        with whole_folder(view.folder / SEGMENTS / name) as draft:
            described = write_segment(draft, name, rows, ids_of(view, change.connection, keys.tolist()), view.metric)
        put_segment(change.connection, state.open_segment, described)
    change.connection.execute("DELETE FROM blocks")
    change.connection.execute("DELETE FROM deaths WHERE segment = ?", (state.open_segment,))
    following = replace(state, sequence=change.sequence, open_segment=next_number(view), open_rows=0)
    write_state(change.connection, following)
    return len(living)


def new_name() -> str:
    """A name that no segment has had."""
    return uuid.uuid4().hex


def next_number(view: View) -> int:
    """The number of the next segment."""
    return max(view.parts) + 1


def put_segment(connection: sqlite3.Connection, number: int, described: Described) -> None:
    """Let the database know a segment that is on the disk."""
    row = (number, described.document())
    connection.execute("INSERT OR REPLACE INTO segments VALUES (?, ?, ?)", (*row, crc(*row)))


def ids_of(view: View, connection: sqlite3.Connection, keys: Sequence[int]) -> list[Id]:
    """The ids of these keys, in this order."""
    query = "SELECT key, id FROM points WHERE key IN (SELECT value FROM json_each(?))"
    found: dict[int, Id] = dict(connection.execute(query, (json.dumps(list(keys)),)).fetchall())
    if len(found) != len(keys):
        raise damaged(view.folder / DATABASE, f"{len(keys) - len(found)} living rows belong to no point")
    return [found[key] for key in keys]


def remove_strangers(folder: Path, connection: sqlite3.Connection) -> None:
    """Remove segments that no database knows: of killed writers, and those compacted. The caller is the one writer.

    While another process compacts, its segment is not known yet, and everything stays.
    """
    try:
        with writing(folder, 0, COMPACTING):
            sweep(folder)
            sweep(folder / SEGMENTS)
            documents = connection.execute("SELECT document FROM segments").fetchall()
            known = {json.loads(document)["name"] for (document,) in documents}
            for path in (folder / SEGMENTS).glob("*"):
                if path.name not in known and not path.name.startswith(".tmp-"):
                    shutil.rmtree(path, ignore_errors=True)
    except CollectionError:
        return
