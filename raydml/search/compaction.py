"""Segments with dead rows, or many of them -> one segment, checked against them before it takes their place.

    python -m raydml.search.compaction FOLDER

It runs in a process of its own, beside readers and the writer, who wait only for the swap: one transaction that names
the new segment, forgets the old ones, and carries over what died in them meanwhile. Prints a report as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from raydml.errors import CollectionError, RaydmlError
from raydml.files import whole_folder
from raydml.search import engine, index_choice
from raydml.search.changes import Change, write_state
from raydml.search.database import blob_crc
from raydml.search.items import Array, Id
from raydml.search.recall import num_common, wilson
from raydml.search.sealing import COMPACTING, new_name, next_number, put_segment, remove_strangers
from raydml.search.segments import SEGMENTS, Described, Rows, Segment, write_segment
from raydml.search.store import Store
from raydml.search.view import Part, View
from raydml.search.writer import writing

LARGE = 1_000_000  # rows of a segment that, once it was measured, is left alone while few of them are dead
DEAD_SHARE = 0.2
_CHECKED = 64  # queries of the check before the swap
_K = 10
_PATIENCE = 60.0  # seconds to wait for the writer's lock


@dataclass(frozen=True)
class Merged:
    """The living rows of some segments, ascending by key."""

    sources: dict[int, Part]
    rows: Rows
    ids: Sequence[Id]


def compact(folder: Path) -> dict[str, Any] | None:
    """Merge what is worth it; gives a report, None where nothing is. CollectionError: all is as before."""
    with Store.open(folder, patience=_PATIENCE) as collection:
        with writing(folder, _PATIENCE, COMPACTING):
            view = collection.read(lambda reading: reading.view)
            chosen = choose(view)
            if not chosen:
                return None
            merged = merge(chosen, view.dimension)
            described = _write(view, merged, collection.facts.recall)
            if described is not None:
                check(view, merged, described)
            collection.change(lambda change: swap(change, merged, described))
        collection.change(lambda change: remove_strangers(folder, change.connection))
    rows = sum(len(part.rows) for part in chosen.values())
    return {"segments": len(chosen), "rows": rows, "kept": len(merged.ids)}


def choose(view: View) -> dict[int, Part]:
    """The segments to merge: small ones, those with many dead rows or never measured; none if nothing is won."""
    sealed = {number: part for number, part in view.parts.items() if isinstance(part.rows, Segment)}
    chosen = {
        number: part
        for number, part in sealed.items()
        if len(part.rows) < LARGE or part.num_dead > DEAD_SHARE * len(part.rows) or not _measured(part)
    }
    large = sum(len(part.rows) for part in chosen.values()) >= index_choice.MIN_ROWS
    worth = len(chosen) > 1 or any(part.num_dead or (large and not _measured(part)) for part in chosen.values())
    return chosen if worth else {}


def _measured(part: Part) -> bool:
    """Whether an index was tried, or is there."""
    return isinstance(part.rows, Segment) and bool(part.rows.described.index)


def merge(sources: dict[int, Part], dimension: int) -> Merged:
    """Read the living rows of the sources."""
    living = [(part.rows, np.flatnonzero(part.alive)) for part in sources.values()]
    keys = np.concatenate([held.keys[rows] for held, rows in living])
    written = np.concatenate([held.written[rows] for held, rows in living])
    order = np.argsort(keys)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    vectors = np.empty((len(keys), dimension), dtype=np.float32)
    ids: list[Id] = [0] * len(keys)
    start = 0
    for held, rows in living:
        assert isinstance(held, Segment)
        here = place[start : start + len(rows)]
        vectors[here] = held.vectors[rows]
        for target, identifier in zip(here.tolist(), held.ids(rows), strict=True):
            ids[target] = identifier
        start += len(rows)
    return Merged(sources, (vectors, keys[order], written[order]), ids)


def check(view: View, merged: Merged, described: Described) -> None:
    """Search the old segments and the new one for some of their vectors: the same neighbours, or CollectionError."""
    number = next_number(view)
    fresh = Segment(view.folder, number, described, view.metric)
    after = replace(view, parts={number: Part(fresh, np.zeros(len(fresh), dtype=bool))})
    before = replace(view, parts=merged.sources)
    places = np.linspace(0, len(merged.ids) - 1, min(_CHECKED, len(merged.ids))).astype(np.int64)
    queries = merged.rows[0][places]
    k = min(_K, len(merged.ids))
    expected, found = (engine.search(seen, queries, k, exact=True)[1] for seen in (before, after))
    if not np.array_equal(expected, found):
        differ = int((expected != found).any(axis=1).sum())
        raise CollectionError(
            f"{differ} of {len(queries)} searches find others in the new segment: nothing was changed"
        )
    target = described.index.get("target", 0.0)
    hits = num_common(engine.search(after, queries, k)[1], expected)
    if wilson(hits, expected.size)[1] < target:
        raise CollectionError(
            f"the new index finds {hits} of {expected.size} neighbours, less than {target:.2%}: nothing was changed"
        )


def swap(change: Change, merged: Merged, described: Described | None) -> None:
    """The new segment takes the place of the old ones, with the rows dead that died since they were read."""
    view, connection = change.view, change.connection
    died: list[Array] = []
    for number, part in merged.sources.items():
        now = view.parts.get(number)
        if now is None or now.rows is not part.rows:
            raise CollectionError("the segments changed while they were compacted: nothing was changed, try again")
        rows = np.flatnonzero(part.alive & ~now.alive)
        died.append(np.searchsorted(merged.rows[1], part.rows.keys[rows]))
    numbers = [(number,) for number in merged.sources]
    connection.executemany("DELETE FROM segments WHERE number = ?", numbers)
    connection.executemany("DELETE FROM deaths WHERE segment = ?", numbers)
    if described is not None:
        number = next_number(view)
        put_segment(connection, number, described)
        row = (change.sequence, number, np.concatenate(died).astype("<i4").tobytes())
        connection.execute("INSERT INTO deaths VALUES (?, ?, ?, ?)", (*row, blob_crc(*row)))
    write_state(connection, replace(view.state, sequence=change.sequence))


def _write(view: View, merged: Merged, recall: float) -> Described | None:
    """The merged rows on disk; None where there are none."""
    if not merged.ids:
        return None
    name = new_name()
    with whole_folder(view.folder / SEGMENTS / name) as draft:
        return write_segment(draft, name, merged.rows, merged.ids, view.metric, recall)


def main(arguments: Sequence[str]) -> int:
    """Compact one folder; 1 and a line on stderr where that fails."""
    try:
        print(json.dumps(compact(Path(arguments[0]))))
    except RaydmlError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
