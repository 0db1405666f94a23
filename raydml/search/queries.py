"""A question to a collection -> hits: filters, groups and thresholds around the engine's nearest points."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise, repeat
from typing import Any

import numpy as np
import orjson

from raydml.errors import CollectionError
from raydml.search import checks, engine
from raydml.search.allowed import Allowed
from raydml.search.items import Array, Hit, Metric
from raydml.search.nearest import faced_queries, scores
from raydml.search.payload_index import typed, values_at
from raydml.search.reading import Reading

_GROWTH = 4
_HIT: Callable[[type[Hit], tuple[Any, ...]], Hit] = tuple.__new__  # what Hit(...) does, in C alone
_MOST_HITS = 20_000_000  # of one request
Found = tuple[Array, Array]  # closeness (nq, k) and keys (nq, k), -inf and -1 where there are no more


@dataclass(frozen=True)
class Question:
    """What is asked of every query alike."""

    k: int
    allowed: Allowed | None = None
    score_threshold: float | None = None  # the lowest score of a hit; for l2 the largest distance
    group_by: str | None = None  # a field of payloads; only the nearest hit of each of its values remains
    with_payload: bool = True
    with_vectors: bool = False
    exact: bool = False  # scan everything, whatever indexes there are


def answer(reading: Reading, queries: Array, question: Question, excluded: Array | None = None) -> list[list[Hit]]:
    """The hits of each query (nq, d), nearest first; `excluded` (nq, m) are keys of points that are not its hits."""
    if len(queries) == 0:
        return []
    if len(queries) * min(question.k, len(reading.view)) > _MOST_HITS:
        raise CollectionError(
            f"{len(queries):,} queries with {question.k:,} hits each are more than {_MOST_HITS:,} hits: ask in parts"
        )
    total = len(reading.view) if question.allowed is None else len(question.allowed.keys)

    def search(depth: int) -> Found:
        return engine.search(reading.view, queries, depth, question.allowed, excluded, question.exact)

    if question.group_by is None:
        closeness, keys = search(max(1, min(question.k, total)))
    else:
        closeness, keys = _grouped(reading, search, question, total)
    if question.score_threshold is not None:
        nearness = closeness_of(question.score_threshold, reading.view.metric)
        keys = np.where(closeness >= nearness, keys, -1)
    return render(reading, closeness, keys, question)


def render(reading: Reading, closeness: Array, keys: Array, question: Question) -> list[list[Hit]]:
    """Keys (nq, k) as hits, without those that are -1. Hits of several queries share no payload."""
    there = keys >= 0
    found = keys[there]
    payloads: list[Any]
    if question.with_payload:
        points = reading.points(np.unique(found))
        each = [points[key] for key in found.tolist()]
        ids, payloads = [point.id for point in each], [orjson.loads(point.payload) for point in each]
    else:
        ids, payloads = reading.ids(found), [{} for _ in range(len(found))]
    vectors: Iterable[Any] = reading.vectors(found) if question.with_vectors else repeat(None)
    shown = scores(closeness[there], reading.view.metric).tolist()
    hits = list(map(_HIT, repeat(Hit), zip(ids, shown, payloads, vectors, strict=False)))
    ends = np.cumsum(there.sum(axis=1)).tolist()
    return [hits[start:end] for start, end in pairwise([0, *ends])]


def recommended(reading: Reading, positives: Array, negatives: Array) -> Array:
    """The query (1, d) between examples: the mean of the positives, moved away from the mean of the negatives.

    mean(p) + (mean(p) - mean(n)), of unit vectors for cosine: Qdrant's `average_vector`.
    """
    metric = reading.view.metric
    wanted = faced_queries(positives, metric).mean(axis=0, keepdims=True)
    if len(negatives):
        wanted = 2 * wanted - faced_queries(negatives, metric).mean(axis=0, keepdims=True)
    return checks.check_vectors(wanted, reading.view.dimension, metric)


def group_of(payload: Any, field: str) -> Any:
    """What a payload has in the field, as something that can be compared; None where it has no scalar there."""
    values = [value for value in values_at(payload, field) if not isinstance(value, dict | list)]
    return typed(values[0]) if values else None


def _grouped(reading: Reading, search: Callable[[int], Found], question: Question, total: int) -> Found:
    """The nearest point of each group, up to k groups; looks deeper until it has them or has seen every point."""
    assert question.group_by is not None
    groups: dict[int, Any] = {}
    depth = question.k
    while True:
        depth = max(1, min(depth * _GROWTH, total))
        closeness, keys = search(depth)
        fresh = np.setdiff1d(keys[keys >= 0], np.fromiter(groups, dtype=np.int64))
        for key, point in reading.points(fresh).items():
            groups[key] = group_of(orjson.loads(point.payload), question.group_by)
        chosen = [_first_of_each(row, groups, question.k) for row in keys]
        if depth >= total or all(len(places) == question.k for places in chosen):
            break
    width = max((len(places) for places in chosen), default=0)
    best = np.full((len(keys), width), -np.inf), np.full((len(keys), width), -1)
    for row, places in enumerate(chosen):
        best[0][row, : len(places)], best[1][row, : len(places)] = closeness[row, places], keys[row, places]
    return best


def _first_of_each(keys: Array, groups: dict[int, Any], k: int) -> list[int]:
    seen: set[Any] = {None}
    places: list[int] = []
    for place, key in enumerate(keys.tolist()):
        group = groups.get(key)
        if group not in seen and len(places) < k:
            seen.add(group)
            places.append(place)
    return places


def closeness_of(score: float, metric: Metric) -> float:
    """The inverse of `nearest.scores`."""
    return -(score**2) if metric == "l2" else score
