"""A collection's SQLite database: its tables, and connections on which a committed change is durable."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raydml.errors import CollectionBusy, CollectionDamaged, CollectionError, ResourceError
from raydml.files import network_file_system

DATABASE = "collection.sqlite"
_BUSY = 10.0  # seconds that SQLite itself waits for a lock of its own
_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}

# A point's `written` is the sequence number of its vector, and names the one row, in one segment, that holds it.
# `crc` is over the other columns of its row: SQLite itself does not notice a flipped bit.
_SCHEMA = """
CREATE TABLE facts (only INTEGER PRIMARY KEY CHECK (only = 1), document TEXT NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE state (only INTEGER PRIMARY KEY CHECK (only = 1), sequence INTEGER NOT NULL, next_key INTEGER NOT NULL,
    open_segment INTEGER NOT NULL, open_rows INTEGER NOT NULL, points INTEGER NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE points (key INTEGER PRIMARY KEY, id NOT NULL UNIQUE, payload TEXT NOT NULL,
    sequence INTEGER NOT NULL, written INTEGER NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE blocks (sequence INTEGER PRIMARY KEY, segment INTEGER NOT NULL, keys BLOB NOT NULL, vectors BLOB NOT NULL,
    crc INTEGER NOT NULL);
CREATE TABLE segments (number INTEGER PRIMARY KEY, document TEXT NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE deaths (sequence INTEGER NOT NULL, segment INTEGER NOT NULL, rows BLOB NOT NULL, crc INTEGER NOT NULL,
    PRIMARY KEY (sequence, segment)) WITHOUT ROWID;
CREATE TABLE requests (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, content TEXT NOT NULL,
    answer TEXT NOT NULL);
CREATE TABLE indexed (field TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE field_values (field TEXT NOT NULL, kind TEXT NOT NULL, value, key INTEGER NOT NULL,
    PRIMARY KEY (field, kind, value, key)) WITHOUT ROWID;
"""


def crc(*values: Any) -> int:
    """CRC-32 over integers and texts, as Python writes them."""
    return zlib.crc32(repr(values).encode())


def blob_crc(*values: int | bytes) -> int:
    """CRC-32 over integers and bytes."""
    return crc(*(zlib.crc32(value) if isinstance(value, bytes) else value for value in values))


def checked(folder: Path, table: str, row: tuple[Any, ...]) -> tuple[Any, ...]:
    """The row without its last column, which must be the CRC of the others."""
    if crc(*row[:-1]) != row[-1]:
        raise damaged(folder / DATABASE, f"a row of {table} ({row[0]}) does not match its checksum")
    return row[:-1]


def create(folder: Path, facts: dict[str, Any]) -> None:
    """Make the database, whole or not at all: it is written under another name in a folder of its own by the caller."""
    connection = connect(folder)
    try:
        document = json.dumps(facts)
        state = (1, 1, 1, 0, 0)  # the creation is change 1
        connection.executescript("BEGIN;" + _SCHEMA)
        connection.execute("INSERT INTO facts VALUES (1, ?, ?)", (document, crc(1, document)))
        connection.execute("INSERT INTO state VALUES (1, ?, ?, ?, ?, ?, ?)", (*state, crc(1, *state)))
        connection.execute("COMMIT")
    finally:
        connection.close()


def connect(folder: Path) -> sqlite3.Connection:
    """A connection in autocommit mode; a commit on it is on the disk when it returns (WAL, synchronous FULL)."""
    try:
        connection = sqlite3.connect(folder / DATABASE, timeout=_BUSY, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA temp_store = MEMORY")  # what a savepoint may undo need not be durable
        connection.execute("PRAGMA cache_size = -16000")  # KiB: payloads of hits lie all over the table
        return connection
    except sqlite3.DatabaseError as error:
        raise translated(folder, error) from error


@contextmanager
def translating(folder: Path) -> Iterator[None]:
    """SQLite's errors in the block as ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise translated(folder, error) from error


def translated(folder: Path, error: sqlite3.Error) -> CollectionError | ResourceError:
    """A full or unwritable disk as a ResourceError, everything else as damage, with the way out."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    path = folder / DATABASE
    if code in _FULL:
        return ResourceError(
            f"cannot write {path}: {error}; free some space or correct the permissions", path=str(path)
        )
    if code == sqlite3.SQLITE_BUSY:
        return CollectionBusy(f"{folder} has another writer at work: try again when it is done")
    return damaged(path, str(error))


def damaged(path: Path, how: str) -> CollectionDamaged:
    """The error that names a damaged file."""
    return CollectionDamaged(
        f"the collection is damaged at {path}: {how}; restore it from a snapshot, or index again", path=str(path)
    )


def refuse_network(folder: Path, mounts: str | None = None) -> None:
    """CollectionError where the folder lies on a network file system, whose locks SQLite cannot trust."""
    kind = network_file_system(folder, mounts)
    if kind is not None:
        raise CollectionError(
            f"{folder} is on a network file system ({kind}), where two machines could write at once and acknowledged "
            f"vectors be lost: keep collections on a local disk",
            kind=kind,
        )
