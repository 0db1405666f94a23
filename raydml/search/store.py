"""Points of a collection by id: stored, changed, counted and kept; and what keeps their files small and whole."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import orjson

from raydml.errors import CollectionError, RaydmlError
from raydml.search import backup, checks, payload_index, sealing
from raydml.search.allowed import Allowed, passing
from raydml.search.changes import Change, points_by_id
from raydml.search.checking import check
from raydml.search.embedder import check_digest
from raydml.search.filters import parse
from raydml.search.items import Filter, Id, Item, Payload
from raydml.search.opened import Opened
from raydml.search.reading import Reading
from raydml.search.rebuilding import rebuilt
from raydml.search.requests import once
from raydml.search.writer import writing

SEAL_ROWS = 32_768  # unsealed rows that become a segment; below, they are searched in memory


class Store(Opened):
    """All that does not search."""

    @property
    def ids(self) -> list[Id]:
        """Ids in order of insertion."""
        query = "SELECT id FROM points ORDER BY key"
        return self.read(lambda reading: [identifier for (identifier,) in reading.connection.execute(query)])

    def count(self, filter: Filter | None = None) -> int:
        """Number of items, of those that pass the filter if one is given."""
        return self.read(
            lambda reading: len(reading.view) if filter is None else len(self._allow(reading, filter).keys)
        )

    def get(self, ids: Iterable[Id]) -> list[Item]:
        """The items with these ids, in this order; CollectionError if one is unknown."""
        checked = checks.check_ids(ids, unique=False)

        def items(reading: Reading) -> list[Item]:
            keys = reading.keys(checked)
            distinct = np.unique(keys)
            points = reading.points(distinct)
            held = dict(zip(distinct.tolist(), reading.items([points[key] for key in distinct.tolist()]), strict=True))
            return [held[key] for key in keys.tolist()]

        return self.read(items)

    def known(self, ids: Iterable[Id]) -> set[Id]:
        """Which of these ids the collection has."""
        checked = checks.check_ids(ids, unique=False)
        return self.read(lambda reading: {point.id for point in points_by_id(reading.connection, checked)})

    def scroll(self, after: Id | None = None, limit: int = 100, filter: Filter | None = None) -> list[Item]:
        """The next `limit` items in order of insertion, those after the item `after`."""
        limit = checks.check_k(limit)

        def items(reading: Reading) -> list[Item]:
            start = 0 if after is None else int(reading.keys(checks.check_ids([after], unique=True))[0])
            if filter is None:
                return reading.items(reading.after(start, limit))
            keys = self._allow(reading, filter).keys
            chosen = keys[np.searchsorted(keys, start, side="right") :][:limit]
            points = reading.points(chosen)
            return reading.items([points[key] for key in chosen.tolist()])

        return self.read(items)

    def upsert(
        self,
        ids: Iterable[Id],
        vectors: Any,
        payloads: Sequence[Payload] | None = None,
        model_digest: str | None = None,
        request: str | None = None,
    ) -> int:
        """Store items: `vectors` (n, dimension), kept as float32, and one JSON object each as payload ({} if none).

        A known id is replaced, vector and payload, and keeps its place in the order of insertion. Gives the number of
        the change. `request` names the request: a second one of this name and content changes nothing.
        """
        check_digest(model_digest, self.model_digest)
        checked = checks.check_ids(ids, unique=True)
        array = checks.check_vectors(vectors, self.dimension, self.metric)
        if len(checked) != len(array):
            raise CollectionError(f"{len(checked)} ids for {len(array)} vectors: give one for each")
        texts = checks.check_payloads(payloads, len(checked))
        said = () if request is None else ("upsert", checked, array.tobytes(), [orjson.loads(text) for text in texts])
        sequence = self.change(once(request, said, lambda change: change.upsert(checked, array, texts)))
        if self._latest.state.open_rows >= SEAL_ROWS:
            with contextlib.suppress(RaydmlError):  # the items are durable; the next upsert tries again
                self.seal()
        return sequence

    def delete(
        self, ids: Iterable[Id] | None = None, *, filter: Filter | None = None, request: str | None = None
    ) -> int:
        """Remove items by id, or all that pass the filter; gives how many there were: unknown ids are passed over."""
        if (ids is None) == (filter is None):
            raise CollectionError("delete takes either ids or filter=")
        if filter == {}:
            raise CollectionError("an empty filter would delete everything: say which items, or give ids")
        checked = None if ids is None else checks.check_ids(ids, unique=True)

        def work(change: Change) -> int:
            return change.delete(checked if checked is not None else self._ids_passing(change, filter))

        return self.change(once(request, ("delete", checked, filter), work))

    def set_payload(
        self, ids: Iterable[Id], payload: Payload, *, merge: bool = True, request: str | None = None
    ) -> int:
        """Add fields to the items' payloads, or replace them whole; gives how many of the ids were there."""
        checked = checks.check_ids(ids, unique=True)
        copied = orjson.loads(checks.check_payloads([payload], 1)[0])
        content = ("set_payload", checked, copied, merge)
        return self.change(once(request, content, lambda change: change.set_payload(checked, copied, merge)))

    def index_payload(self, field: str) -> None:
        """Keep an index of a field of payloads: filters by its value or range, and `facet`, need not read payloads."""
        self.change(lambda change: payload_index.create(change.connection, field))

    def facet(self, field: str, limit: int = 100) -> list[tuple[Any, int]]:
        """The values of an indexed field with their number of items, the most frequent first."""
        limit = checks.check_k(limit)

        def values(reading: Reading) -> list[tuple[Any, int]]:
            indexed = payload_index.fields(reading.connection)
            if field not in indexed:
                raise CollectionError(f"{field} has no index, only {indexed} have: call index_payload({field!r}) first")
            return payload_index.facet(reading.connection, field, limit)

        return self.read(values)

    def seal(self) -> int:
        """Move what is held in memory into a segment; upserts do it by themselves. Gives the number of rows."""

        def work(change: Change) -> int:
            sealing.remove_strangers(self.path, change.connection)
            return sealing.seal(change)

        return self.change(work)

    def compact(self) -> dict[str, Any] | None:
        """Merge segments and drop dead rows, in another process, while this one reads and writes; see `compaction`."""
        command = [sys.executable, "-m", "raydml.search.compaction", str(self.path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CollectionError(f"compaction of {self.path} failed: {done.stderr.strip().splitlines()[-1]}")
        report: dict[str, Any] | None = json.loads(done.stdout)
        return report

    def check(self) -> None:
        """Read and check everything; CollectionError names what is damaged."""
        self.read(check)

    def rebuild(self) -> None:
        """Make all files anew that can be derived from the vectors; CollectionError where the vectors are damaged."""
        with writing(self.path, self._patience, sealing.COMPACTING):
            self.change(rebuilt)
        self.change(lambda change: sealing.remove_strangers(self.path, change.connection))

    def snapshot(self, target: str | Path) -> None:
        """Copy the collection, as it is now, to the folder `target`, which appears whole; writers go on meanwhile."""
        backup.snapshot(self.path, Path(target), self._patience)

    @classmethod
    def restore(cls, snapshot: str | Path, path: str | Path) -> Self:
        """A new collection in the folder `path` from a snapshot, every byte checked."""

        def check() -> None:
            with cls.open(snapshot) as taken:
                taken.check()

        backup.restore(Path(snapshot), Path(path), check)
        return cls.open(path)

    def _allow(self, reading: Reading, filter: Filter) -> Allowed:
        return self._filters.allowed(reading.connection, reading.view.state.sequence, filter)

    def _ids_passing(self, change: Change, filter: Filter | None) -> list[Id]:
        keys = passing(change.connection, parse(filter or {}))
        return sealing.ids_of(change.view, change.connection, keys.tolist())
