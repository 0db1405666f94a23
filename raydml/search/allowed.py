"""A filter and a view -> the points that pass, and their rows in each part; kept until the collection changes."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import orjson

from raydml.search.filters import Lookup, Parsed, parse
from raydml.search.items import Array, Filter
from raydml.search.nearest import Searched
from raydml.search.payload_index import fields
from raydml.search.view import Part

_OPERATORS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_KEPT = 32  # filters
_COPIED_BYTES = 1 << 26  # of one part's allowed vectors, kept beside the filter
_AT_ONCE = 8192


class Allowed:
    """Points that a search may find."""

    def __init__(self, keys: Array) -> None:
        """`keys`: int64, ascending."""
        self.keys = keys
        self._rows: dict[Part, Array] = {}
        self._copies: dict[Part, Searched] = {}

    def rows(self, part: Part) -> Array:
        """The part's living rows among them, ascending."""
        if part not in self._rows:
            found = part.rows_of(self.keys)
            self._rows[part] = np.sort(found[found >= 0])
        return self._rows[part]

    def copies(self, part: Part) -> Searched:
        """The vectors of these rows, together."""
        if part in self._copies:
            return self._copies[part]
        copies = part.rows.searched.only(self.rows(part))
        if copies.vectors.nbytes <= _COPIED_BYTES:
            self._copies[part] = copies
        return copies


class Filters:
    """The filters asked last, with what they allow."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, str], Allowed] = OrderedDict()
        self._lock = threading.Lock()

    def allowed(self, connection: sqlite3.Connection, sequence: int, filter: Filter) -> Allowed:
        """The points that pass at this sequence number, which the connection's transaction sees."""
        parsed = parse(filter)
        name = (sequence, json.dumps(filter, sort_keys=True))
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        allowed = Allowed(passing(connection, parsed))
        with self._lock:
            self._kept[name] = allowed
            while len(self._kept) > _KEPT or next(iter(self._kept))[0] < sequence:
                self._kept.popitem(last=False)
        return allowed


def passing(connection: sqlite3.Connection, parsed: Parsed) -> Array:
    """Keys of the points that pass, ascending: indexes narrow them down, payloads are read where that is not enough."""
    indexed = set(fields(connection))
    usable = [lookup for lookup in parsed.lookups if lookup.field in indexed]
    narrowed: Array | None = None
    for lookup in usable:
        keys = _looked_up(connection, lookup)
        narrowed = keys if narrowed is None else np.intersect1d(narrowed, keys, assume_unique=True)
    if narrowed is not None and parsed.whole and len(usable) == len(parsed.lookups):
        return narrowed
    passed = [key for key, payload in _payloads(connection, narrowed) if parsed.passes(orjson.loads(payload))]
    return np.array(passed, dtype=np.int64)


def _looked_up(connection: sqlite3.Connection, lookup: Lookup) -> Array:
    query = "SELECT key FROM field_values WHERE field = ? AND kind = ? AND value "
    if lookup.values:
        found = [_keys(connection, query + "= ?", (lookup.field, kind, value)) for kind, value in lookup.values]
        return np.unique(np.concatenate(found))
    found = [
        np.unique(_keys(connection, query + f"{_OPERATORS[name]} ?", (lookup.field, kind, value)))
        for name, kind, value in lookup.bounds
    ]
    result = found[0]
    for keys in found[1:]:
        result = np.intersect1d(result, keys, assume_unique=True)
    return result


def _keys(connection: sqlite3.Connection, query: str, values: tuple[object, ...]) -> Array:
    return np.fromiter((key for (key,) in connection.execute(query, values)), dtype=np.int64)


def _payloads(connection: sqlite3.Connection, keys: Array | None) -> Iterator[tuple[int, str]]:
    if keys is None:
        yield from connection.execute("SELECT key, payload FROM points ORDER BY key")
        return
    for start in range(0, len(keys), _AT_ONCE):
        chosen = json.dumps(keys[start : start + _AT_ONCE].tolist())
        query = "SELECT key, payload FROM points WHERE key IN (SELECT value FROM json_each(?)) ORDER BY key"
        yield from connection.execute(query, (chosen,))
