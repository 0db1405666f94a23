"""Who is it, and are these two the same? Answers with thresholds that are calibrated on the collection itself.

An identity is the value of one field of the payloads. All of it is by the collection's own scores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raydml.errors import CollectionError
from raydml.search import queries
from raydml.search.checks import check_k
from raydml.search.collection import Collection
from raydml.search.items import Array, Hit, Id, Metric
from raydml.search.nearest import Searched, rescored, scores
from raydml.search.queries import Question
from raydml.search.reading import Reading
from raydml.search.recall import wilson

MOST_PAIRS = 100_000
MOST_QUERIES = 2_000
_FEWEST = 100  # impostors that a threshold can be chosen and measured with


@dataclass(frozen=True)
class Classified:
    """One query's class; `label` is None where it abstains."""

    label: Any
    share: float  # of the neighbours that have this class
    hits: list[Hit]


@dataclass(frozen=True)
class Threshold:
    """The score from which on two are taken for the same (for l2: up to which distance), and how often that is wrong.

    It is chosen on one half of the impostors and measured on the other: `false_accept_rate` of `impostors`, with its
    95 % Wilson interval. `true_accept_rate` is the share of the genuine ones that it accepts.
    """

    field: str
    score: float
    target: float
    false_accept_rate: float
    interval: tuple[float, float]
    impostors: int
    true_accept_rate: float | None
    genuine: int


@dataclass(frozen=True)
class Identified:
    """One query's identity; None where nobody known is near enough. `score` and `hits`: one of each identity."""

    identity: Any
    score: float | None
    hits: list[Hit]


def classify(
    collection: Collection,
    field: str,
    k: int = 10,
    least_share: float = 0.5,
    least_score: float | None = None,
    **query: Any,
) -> list[Classified]:
    """The commonest class among each query's k nearest; of equally common ones, that of the nearest.

    Abstains where fewer than `least_share` of the neighbours agree, or none has a score as good as `least_score`.
    `query` is what `search` takes: vectors=, images=, texts= or ids=, and filter=.
    """
    if not 0 <= least_share <= 1:
        raise CollectionError(f"least_share is a share from 0 to 1, not {least_share}")
    return elected(collection.search(k=k, score_threshold=least_score, **query), field, least_share)


def elected(found: Sequence[Sequence[Hit]], field: str, least_share: float) -> list[Classified]:
    """The class of each query by its hits."""
    return [_elected(hits, field, least_share) for hits in found]


def calibrate_pairs(collection: Collection, field: str, false_accept_rate: float, seed: int = 0) -> Threshold:
    """The threshold of `same` at which a random pair of different identities is accepted so seldom."""

    def pairs(reading: Reading) -> tuple[Array, Array]:
        labels, keys = _labels(reading, field)
        random = np.random.default_rng(seed)
        first, second = random.integers(0, len(keys), (2, MOST_PAIRS))
        impostors = labels[first] != labels[second]
        genuine = _genuine_pairs(labels, random)
        different = _pair_scores(reading, keys[first[impostors]], keys[second[impostors]])
        return different, _pair_scores(reading, keys[genuine[0]], keys[genuine[1]])

    different, same = collection.read(pairs)
    return _threshold(field, false_accept_rate, different, same, collection.metric, seed)


def calibrate_identify(collection: Collection, field: str, false_accept_rate: float, seed: int = 0) -> Threshold:
    """The threshold of `identify` at which somebody unknown is so seldom taken for somebody.

    Stored items stand for the unknown: each is searched among all other identities. And for the known: each is searched
    among the other items of its own identity.
    """

    def best(reading: Reading) -> tuple[Array, Array]:
        labels, keys = _labels(reading, field)
        chosen = np.random.default_rng(seed).permutation(len(keys))[:MOST_QUERIES]
        asked = keys[chosen]
        question = Question(k=2, group_by=field, exact=True)
        results = queries.answer(reading, reading.vectors(asked), question, asked[:, None])
        strange: list[float] = []
        known: list[float] = []
        for label, hits in zip(labels[chosen].tolist(), results, strict=True):
            for hit in hits:
                is_own = _label(hit.payload, field) == label
                (known if is_own else strange).append(hit.score)
                if not is_own:
                    break
        return np.array(strange), np.array(known)

    strange, known = collection.read(best)
    return _threshold(field, false_accept_rate, strange, known, collection.metric, seed)


def same(collection: Collection, pairs: Iterable[tuple[Id, Id]], threshold: Threshold) -> list[tuple[bool, float]]:
    """Whether the two stored items of each pair are the same by the threshold, and their score."""
    listed = list(pairs)

    def compare(reading: Reading) -> Array:
        first, second = (reading.keys([pair[side] for pair in listed]) for side in (0, 1))
        return _pair_scores(reading, first, second)

    if not listed:
        return []
    found = collection.read(compare).tolist()
    return [(bool(_accepts(np.array(score), threshold.score, collection.metric)), score) for score in found]


def identify(collection: Collection, threshold: Threshold, k: int = 5, **query: Any) -> list[Identified]:
    """The identity of each query, None for somebody unknown; `query` is what `search` takes."""
    check_k(k)
    return recognised(collection.search(k=k, group_by=threshold.field, **query), threshold, collection.metric)


def recognised(found: Sequence[Sequence[Hit]], threshold: Threshold, metric: Metric) -> list[Identified]:
    """Who each query is by its hits, one of each identity."""
    answers = []
    for hits in found:
        accepted = bool(hits) and bool(_accepts(np.array(hits[0].score), threshold.score, metric))
        score = hits[0].score if hits else None
        answers.append(Identified(_label(hits[0].payload, threshold.field) if accepted else None, score, list(hits)))
    return answers


def _elected(hits: Sequence[Hit], field: str, least_share: float) -> Classified:
    labels = [_label(hit.payload, field) for hit in hits]
    votes = Counter(label for label in labels if label is not None)
    if not votes:
        return Classified(None, 0.0, list(hits))
    most = max(votes.values())
    winner = next(label for label in labels if label is not None and votes[label] == most)
    share = most / len(hits)
    return Classified(winner if share >= least_share else None, share, list(hits))


def _label(payload: Any, field: str) -> Any:
    """The first scalar in the field, None where there is none."""
    group = queries.group_of(payload, field)
    return None if group is None else group[1]


def _labels(reading: Reading, field: str) -> tuple[Array, Array]:
    """Labels (n,) as objects and keys (n,) of the points that have the field."""
    labelled = [(point.key, _label(payload, field)) for point, payload in reading.all_payloads()]
    labelled = [(key, label) for key, label in labelled if label is not None]
    if len({label for _, label in labelled}) < 2:
        raise CollectionError(f"fewer than two identities are in the field {field!r}: nothing can be calibrated")
    labels = np.empty(len(labelled), dtype=object)
    labels[:] = [label for _, label in labelled]
    return labels, np.array([key for key, _ in labelled], dtype=np.int64)


def _genuine_pairs(labels: Array, random: np.random.Generator) -> Array:
    """Places (2, n) of one random pair of each identity that has two items."""
    members: dict[Any, list[int]] = {}
    for place, label in enumerate(labels.tolist()):
        members.setdefault(label, []).append(place)
    chosen = [random.choice(places, 2, replace=False) for places in members.values() if len(places) > 1]
    return np.array(chosen, dtype=np.int64).reshape(-1, 2).T


def _pair_scores(reading: Reading, first: Array, second: Array) -> Array:
    metric = reading.view.metric
    one, other = reading.vectors(first), reading.vectors(second)
    searched = Searched(other, other, 0.0, metric)
    closeness, _ = rescored(one, np.arange(len(one))[:, None], searched, 1)
    return scores(closeness[:, 0], metric)


def _accepts(values: Array, score: float, metric: Metric) -> Array:
    return values <= score if metric == "l2" else values >= score


def _threshold(field: str, target: float, strange: Array, known: Array, metric: Metric, seed: int) -> Threshold:
    if not 0 < target < 1:
        raise CollectionError(f"a false accept rate is a share between 0 and 1, not {target}")
    needed = max(_FEWEST, int(np.ceil(2 / target)))
    if len(strange) < needed:
        raise CollectionError(
            f"a false accept rate of {target:g} needs {needed:,} impostors, and there are {len(strange):,}: choose a "
            f"higher rate, or store more items of more identities"
        )
    order = np.random.default_rng(seed).permutation(len(strange))
    chosen, measured = strange[order[: len(order) // 2]], strange[order[len(order) // 2 :]]
    better = np.sort(chosen) if metric == "l2" else -np.sort(-chosen)
    first_refused = float(better[int(target * len(chosen))])  # so many are better and may pass
    score = float(np.nextafter(first_refused, -np.inf if metric == "l2" else np.inf))
    accepted = int(_accepts(measured, score, metric).sum())
    genuine = float(_accepts(known, score, metric).mean()) if len(known) else None
    interval = wilson(accepted, len(measured))
    return Threshold(field, score, target, accepted / len(measured), interval, len(measured), genuine, len(known))
