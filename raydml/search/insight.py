"""What a collection says of itself: near duplicates, why a query found what it found, and the pairs it confuses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from raydml.errors import CollectionError
from raydml.files import write_bytes
from raydml.search import engine, queries
from raydml.search.checks import check_k, check_threshold
from raydml.search.collection import Collection
from raydml.search.items import Array, Hit, Id
from raydml.search.queries import Question
from raydml.search.reading import Reading

_AT_ONCE = 256
_FIRST_LOOK = 16
_GROWTH = 4
_SAMPLE = 1000  # points whose neighbours are counted


@dataclass(frozen=True)
class Explained:
    """One query's hits, one of each identity; how far ahead the first is, and which of them are hubs.

    `margin` is the difference of the first two scores, None where fewer than two identities were found. `hubness` of a
    hit is how often it is among the k nearest of other points, beside how often a point is on average.
    """

    hits: list[Hit]
    margin: float | None
    hubness: list[float]


def duplicates(collection: Collection, threshold: float) -> list[list[Id]]:
    """Groups of items that hang together by pairs whose score is at least `threshold` (for l2: at most)."""
    check_threshold(threshold)
    nearness = queries.closeness_of(threshold, collection.metric)

    def groups(reading: Reading) -> list[list[Id]]:
        points = reading.after(0, -1)
        ids = {point.key: point.id for point in points}
        keys = np.array(list(ids), dtype=np.int64)
        parent = {key: key for key in ids}
        for start in range(0, len(keys), _AT_ONCE):
            for one, other in _close_pairs(reading, keys[start : start + _AT_ONCE], nearness):
                roots = sorted((_root(parent, one), _root(parent, other)))
                parent[roots[1]] = roots[0]
        found: dict[int, list[Id]] = {}
        for key in ids:
            found.setdefault(_root(parent, key), []).append(ids[key])
        return [group for group in found.values() if len(group) > 1]

    return collection.read(groups)


def explain(collection: Collection, field: str, k: int = 10, seed: int = 0, **query: Any) -> list[Explained]:
    """Why each query (as `search` takes it) finds what it finds."""
    results = collection.search(k=check_k(k), group_by=field, **query)
    hubs = collection.read(lambda reading: _hubness(reading, k, seed))
    return [
        Explained(
            hits,
            abs(hits[0].score - hits[1].score) if len(hits) > 1 else None,
            [hubs.get(hit.id, 0.0) for hit in hits],
        )
        for hits in results
    ]


def export_hard_negatives(collection: Collection, field: str, path: str | Path, k: int = 5) -> int:
    """Write the nearest items of other identities than each item's own; gives the number of lines.

    JSON lines: id, label, and `negatives` of id, label and score, nearest first.
    """
    check_k(k)

    def lines(reading: Reading) -> list[bytes]:
        written = []
        items = [(point, queries.group_of(payload, field)) for point, payload in reading.all_payloads()]
        labelled = [(point, label) for point, label in items if label is not None]
        for start in range(0, len(labelled), _AT_ONCE):
            some = labelled[start : start + _AT_ONCE]
            keys = np.array([point.key for point, _ in some], dtype=np.int64)
            hits = queries.answer(
                reading, reading.vectors(keys), Question(k + 1, group_by=field, exact=True), keys[:, None]
            )
            for (point, label), found in zip(some, hits, strict=True):
                others = [(hit, queries.group_of(hit.payload, field)) for hit in found]
                negatives = [
                    {"id": hit.id, "label": other[1], "score": hit.score} for hit, other in others if other != label
                ]
                written.append(orjson.dumps({"id": point.id, "label": label[1], "negatives": negatives[:k]}) + b"\n")
        return written

    made = collection.read(lines)
    if not made:
        raise CollectionError(f"no item has the field {field!r}, so there are no negatives")
    write_bytes(path, b"".join(made))
    return len(made)


def _close_pairs(reading: Reading, keys: Array, nearness: float) -> list[tuple[int, int]]:
    """Pairs with one of these keys whose closeness is at least so much; looks deeper while all that is seen is near."""
    vectors, depth = reading.vectors(keys), _FIRST_LOOK
    while True:
        depth = min(depth, len(reading.view))
        closeness, found = engine.search(reading.view, vectors, depth, excluded=keys[:, None], exact=True)
        near = (closeness >= nearness) & (found >= 0)
        if depth >= len(reading.view) or not near[:, -1].any():
            rows, places = np.nonzero(near)
            return list(zip(keys[rows].tolist(), found[rows, places].tolist(), strict=True))
        depth *= _GROWTH


def _root(parent: dict[int, int], key: int) -> int:
    while parent[key] != key:
        parent[key] = parent[parent[key]]
        key = parent[key]
    return key


def _hubness(reading: Reading, k: int, seed: int) -> dict[Id, float]:
    """How often each point is among the k nearest of sampled points, beside the average."""
    points = reading.after(0, -1)
    keys = np.array([point.key for point in points], dtype=np.int64)
    asked = np.random.default_rng(seed).permutation(keys)[:_SAMPLE]
    found = engine.search(reading.view, reading.vectors(asked), k, excluded=asked[:, None])[1]
    hubs, counts = np.unique(found[found >= 0], return_counts=True)
    mean = counts.sum() / max(1, len(keys))
    ids = {point.key: point.id for point in points}
    return {ids[key]: float(count / mean) for key, count in zip(hubs.tolist(), counts.tolist(), strict=True)}
