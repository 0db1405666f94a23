"""A newly trained model -> a second collection of the same items, and what would change if it took the first's place.

Fill the shadow, read the report, and switch the alias that people search by (`aliases`), which can be taken back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from raydml.errors import CollectionError
from raydml.search.collection import Collection
from raydml.search.identities import Threshold, calibrate_pairs
from raydml.search.items import Hit, Id, Item
from raydml.search.reading import Reading
from raydml.search.recall import wilson

_AT_ONCE = 256


@dataclass(frozen=True)
class Quality:
    """One collection on the queries of a comparison."""

    right: int  # queries whose nearest item is of their identity
    interval: tuple[float, float]  # of right / queries, 95 %
    recall: float  # of the items of a query's identity, the share among its k nearest, at most k of them
    threshold: Threshold | None  # None where there are too few items for the false accept rate


@dataclass(frozen=True)
class Comparison:
    """The same items searched in both; `better` and `worse` count the queries that only the one gets right."""

    queries: int
    current: Quality
    shadow: Quality
    better: int
    worse: int
    kept_neighbours: float  # the share of the k nearest that stay among them
    changed_first: float  # the share of queries with another nearest item


def fill(current: Collection, shadow: Collection, inputs: Callable[[Item], Any], most: int | None = None) -> int:
    """Embed every item anew by the shadow's model: `inputs` gives an item's image or text; gives the number embedded.

    At most so many as `most`: fewer say that it is complete.

    Items that the shadow has already are passed over, so that a killed filling goes on where it was.
    """
    embedder = shadow.embedder()
    last: Id | None = None
    embedded = 0
    while embedded != most and (items := current.scroll(after=last, limit=_AT_ONCE)):
        last = items[-1].id
        there = shadow.known([item.id for item in items])
        fresh = [item for item in items if item.id not in there]
        fresh = fresh if most is None else fresh[: most - embedded]
        if fresh:
            vectors = embedder.embed([inputs(item) for item in fresh])
            shadow.upsert([item.id for item in fresh], vectors, [item.payload for item in fresh], embedder.digest)
        embedded += len(fresh)
    return embedded


def compare(
    current: Collection,
    shadow: Collection,
    field: str,
    k: int = 10,
    queries: int = 1000,
    false_accept_rate: float = 0.01,
    seed: int = 0,
) -> Comparison:
    """Search both for the same items, drawn by the seed among those with the field that both hold."""
    labels = current.read(lambda reading: _labels(reading, field))
    there = shadow.known(list(labels))
    shared = [identifier for identifier in labels if identifier in there]
    if len(shared) < 2:
        raise CollectionError(f"{len(shared)} items with the field {field!r} are in both collections: fill the shadow")
    chosen = np.random.default_rng(seed).permutation(len(shared))[:queries]
    asked = [shared[place] for place in np.sort(chosen).tolist()]
    before, after = (collection.search(ids=asked, k=k) for collection in (current, shadow))
    right = [
        [_is_right(labels, query, hits) for query, hits in zip(asked, found, strict=True)] for found in (before, after)
    ]
    overlap = [
        len({hit.id for hit in old} & {hit.id for hit in new}) / max(1, len(old))
        for old, new in zip(before, after, strict=True)
    ]
    return Comparison(
        queries=len(asked),
        current=_quality(current, field, false_accept_rate, labels, asked, before, right[0]),
        shadow=_quality(shadow, field, false_accept_rate, labels, asked, after, right[1]),
        better=sum(new and not old for old, new in zip(*right, strict=True)),
        worse=sum(old and not new for old, new in zip(*right, strict=True)),
        kept_neighbours=float(np.mean(overlap)),
        changed_first=float(np.mean([old[:1] != new[:1] for old, new in zip(_ids(before), _ids(after), strict=True)])),
    )


def _labels(reading: Reading, field: str) -> dict[Id, Any]:
    return {point.id: payload[field] for point, payload in reading.all_payloads() if field in payload}


def _ids(found: list[list[Hit]]) -> list[list[Id]]:
    return [[hit.id for hit in hits] for hits in found]


def _is_right(labels: dict[Id, Any], query: Id, hits: list[Hit]) -> bool:
    return bool(hits) and labels.get(hits[0].id) == labels[query]


def _quality(
    collection: Collection,
    field: str,
    rate: float,
    labels: dict[Id, Any],
    asked: list[Id],
    found: list[list[Hit]],
    right: list[bool],
) -> Quality:
    members: dict[Any, int] = {}
    for label in labels.values():
        members[label] = members.get(label, 0) + 1
    shares = []
    for query, hits in zip(asked, found, strict=True):
        others = min(members[labels[query]] - 1, len(hits))
        if others:
            shares.append(sum(labels.get(hit.id) == labels[query] for hit in hits) / others)
    try:
        threshold = calibrate_pairs(collection, field, rate)
    except CollectionError:
        threshold = None
    count = sum(right)
    return Quality(count, wilson(count, len(asked)), float(np.mean(shares)) if shares else 0.0, threshold)
