"""Names that point to collections: all of a switch's changes happen at once or none, and can be taken back.

One database beside the collections, with one row for each generation of all the names.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from raydml.errors import CollectionError
from raydml.search import home
from raydml.search.database import crc, damaged, refuse_network, translated

REGISTRY = "aliases.sqlite"
_KEPT = 1000  # generations that can be looked back to


@dataclass(frozen=True)
class Generation:
    """All aliases at one time."""

    number: int
    collections: Mapping[str, str]  # alias -> name of the collection


Step = Callable[[sqlite3.Connection, Generation], Mapping[str, str | None]]


class Aliases:
    """The aliases of the collections in the folder `root`."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._path = self.root / REGISTRY

    def current(self) -> Generation:
        """The newest generation; 0, without any alias, where none was made."""
        if not self._path.exists():
            return Generation(0, {})
        try:
            with closing(self._connect()) as connection:
                return self._newest(connection)
        except sqlite3.Error as error:
            raise translated(self._path, error) from error

    def resolve(self, name: str) -> Path:
        """The folder of the collection of this name or alias; CollectionError where there is none."""
        aliases = self.current().collections
        folder = self.root / aliases.get(name, name)
        if not name or Path(name).name != name or not home.exists(folder):
            known = sorted(path.parent.name for path in self.root.glob("*/collection.sqlite"))
            raise CollectionError(f"there is no collection or alias {name!r}; there are {known} and {sorted(aliases)}")
        return folder

    def switch(self, changes: Mapping[str, str | None], expected: int | None = None) -> Generation:
        """Point aliases to collections, or remove those that are given None; all of it or nothing, and durable.

        `expected` is the generation that the caller has seen: CollectionError where another switch came before.
        """
        for alias, collection in changes.items():
            self._check(alias, collection)
        return self._follow(expected, lambda connection, now: {**now.collections, **changes})

    def roll_back(self, expected: int | None = None) -> Generation:
        """Make the aliases what they were before the newest switch, as a new generation."""
        return self._follow(expected, _before)

    def _follow(self, expected: int | None, change: Step) -> Generation:
        refuse_network(self.root)
        try:
            with closing(self._connect()) as connection:
                connection.execute("BEGIN IMMEDIATE")
                now = self._newest(connection)
                if expected not in (None, now.number):
                    raise CollectionError(
                        f"the aliases are of generation {now.number}, not {expected}: look again before you switch",
                        generation=now.number,
                    )
                wanted = change(connection, now)
                named = {alias: collection for alias, collection in wanted.items() if collection is not None}
                row = (now.number + 1, json.dumps(named, sort_keys=True))
                connection.execute("INSERT INTO generations VALUES (?, ?, ?)", (*row, crc(*row)))
                connection.execute("DELETE FROM generations WHERE number <= ?", (now.number + 1 - _KEPT,))
                connection.execute("COMMIT")
                return Generation(row[0], named)
        except sqlite3.Error as error:
            raise translated(self._path, error) from error

    def _check(self, alias: str, collection: str | None) -> None:
        if not alias or Path(alias).name != alias or alias.startswith("."):
            raise CollectionError(f"an alias is a name without slashes, not {alias!r}")
        if (self.root / alias).exists():
            raise CollectionError(f"{alias} is the name of a collection already: give the alias another one")
        if collection is not None and (Path(collection).name != collection or not home.exists(self.root / collection)):
            raise CollectionError(f"the alias {alias} cannot point to {collection!r}: there is no such collection")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=10, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS generations (number INTEGER PRIMARY KEY, document TEXT NOT NULL, crc INTEGER)"
        )
        return connection

    def _newest(self, connection: sqlite3.Connection) -> Generation:
        row = connection.execute("SELECT * FROM generations ORDER BY number DESC LIMIT 1").fetchone()
        return Generation(0, {}) if row is None else self._read(row)

    def _read(self, row: tuple[int, str, int]) -> Generation:
        if crc(*row[:2]) != row[2]:
            raise damaged(self._path, f"generation {row[0]} does not match its checksum")
        return Generation(row[0], json.loads(row[1]))


def _before(connection: sqlite3.Connection, now: Generation) -> Mapping[str, str | None]:
    query = "SELECT document FROM generations WHERE number < ? ORDER BY number DESC LIMIT 1"
    row = connection.execute(query, (now.number,)).fetchone()
    if row is None and now.number != 1:
        raise CollectionError("there is no earlier generation of the aliases to go back to")
    earlier: dict[str, str | None] = {} if row is None else json.loads(row[0])
    return earlier
