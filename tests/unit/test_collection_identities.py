"""Classes, pairs, unknown persons, duplicates and explanations: each against a loop over all pairs of vectors."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydml.errors import CollectionError
from raydml.search import Collection, identities, insight
from raydml.search.recall import LiveRecall, wilson

pytestmark = pytest.mark.timeout(300)
RANDOM = np.random.default_rng(11)
PEOPLE, EACH, DIMENSION = 60, 5, 16
CENTRES = RANDOM.standard_normal((PEOPLE, DIMENSION))
VECTORS = np.repeat(CENTRES, EACH, axis=0) + 0.45 * RANDOM.standard_normal((PEOPLE * EACH, DIMENSION))
UNIT = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
PERSON = np.repeat(np.arange(PEOPLE), EACH)
COSINES = UNIT.astype(np.float32).astype(float) @ UNIT.astype(np.float32).astype(float).T


@pytest.fixture(scope="module", params=["cosine", "l2"])
def people(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Collection:
    collection = Collection.open(tmp_path_factory.mktemp("people") / "c", DIMENSION, request.param)
    collection.upsert(range(len(UNIT)), UNIT, [{"person": f"p{person}"} for person in PERSON])
    collection.upsert(["nobody"], UNIT[:1] * -1)
    return collection


def cosines_of(scores: Any, collection: Collection) -> Any:
    """Scores as cosines: of unit vectors, l2 = sqrt(2 - 2 cos)."""
    return 1 - np.asarray(scores) ** 2 / 2 if collection.metric == "l2" else np.asarray(scores)


def test_a_class_is_that_of_most_neighbours_and_few_or_far_ones_abstain(people: Collection) -> None:
    queries = CENTRES + 0.8 * RANDOM.standard_normal(CENTRES.shape)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    answers = identities.classify(people, "person", k=7, vectors=queries, least_share=0.4)
    abstained = 0
    for query, answer in zip(queries, answers, strict=True):
        everybody = np.concatenate([UNIT, -UNIT[:1]]) @ query
        nearest = [PERSON[row] for row in np.argsort(-everybody)[:7].tolist() if row != 300]  # 300 is nobody
        votes = Counter(nearest)
        most = max(votes.values())
        winner = next(person for person in nearest if votes[person] == most)
        assert answer.share == pytest.approx(most / 7)
        assert answer.label == (f"p{winner}" if most / 7 >= 0.4 else None)
        abstained += answer.label is None
    assert 0 < abstained < PEOPLE
    far = {"cosine": 0.9999, "l2": 0.0001}[people.metric]
    assert [one.label for one in identities.classify(people, "person", vectors=-queries, least_score=far)] == [
        None
    ] * 60
    assert identities.classify(people, "absent", vectors=queries[:1])[0].label is None


def test_a_pair_threshold_keeps_its_false_accept_rate_on_all_pairs(people: Collection) -> None:
    threshold = identities.calibrate_pairs(people, "person", 0.01)
    cosine = cosines_of(threshold.score, people)
    impostors = [COSINES[a, b] for a, b in itertools.combinations(range(300), 2) if PERSON[a] != PERSON[b]]
    genuine = [COSINES[a, b] for a, b in itertools.combinations(range(300), 2) if PERSON[a] == PERSON[b]]
    rate = np.mean(np.array(impostors) >= cosine)
    assert threshold.interval[0] <= threshold.false_accept_rate <= threshold.interval[1]
    assert threshold.interval[0] * 0.9 < rate < threshold.interval[1] * 1.1
    assert rate == pytest.approx(0.01, rel=0.25)
    assert threshold.true_accept_rate == pytest.approx(np.mean(np.array(genuine) >= cosine), abs=0.2)
    for pair, (accepted, score) in zip(
        [(0, 1), (0, 7), (9, 9)], identities.same(people, [(0, 1), (0, 7), (9, 9)], threshold), strict=True
    ):
        assert cosines_of(score, people) == pytest.approx(COSINES[pair], abs=1e-6)
        assert accepted == (COSINES[pair] >= cosine)
    assert identities.same(people, [], threshold) == []


def test_somebody_unknown_is_seldom_identified_and_somebody_known_is(people: Collection) -> None:
    threshold = identities.calibrate_identify(people, "person", 0.1)
    cosine = cosines_of(threshold.score, people)
    strange = np.array([COSINES[row][PERSON[row] != PERSON].max() for row in range(300)])
    known = np.array([np.delete(COSINES[row], row)[np.delete(PERSON, row) == PERSON[row]].max() for row in range(300)])
    assert np.mean(strange >= cosine) == pytest.approx(0.1, abs=0.06)
    assert threshold.interval[0] < np.mean(strange >= cosine) + 0.02
    assert threshold.impostors == 150
    assert threshold.true_accept_rate is not None
    probes = [{"ids": [row], "filter": {"must_not": [{"person": f"p{PERSON[row]}"}]}} for row in range(0, 300, 7)]
    answers = [identities.identify(people, threshold, **probe)[0] for probe in probes]
    assert [answer.identity is None for answer in answers] == [strange[row] < cosine for row in range(0, 300, 7)]
    found = identities.identify(people, threshold, ids=range(300))
    right = [answer.identity == f"p{person}" for answer, person in zip(found, PERSON, strict=True)]
    assert np.mean(right) == pytest.approx(np.mean((known >= cosine) & (known > strange)))
    assert len({hit.payload["person"] for hit in found[0].hits}) == 5


def test_a_rate_that_the_items_cannot_measure_is_refused(people: Collection, tmp_path: Path) -> None:
    with pytest.raises(CollectionError, match=r"needs 20,000 impostors, and there are 300"):
        identities.calibrate_identify(people, "person", 0.0001)
    for rate in (0.0, 1.0, -1):
        with pytest.raises(CollectionError, match="between 0 and 1"):
            identities.calibrate_pairs(people, "person", rate)
    with pytest.raises(CollectionError, match="fewer than two identities"):
        identities.calibrate_pairs(people, "absent", 0.1)


def test_duplicates_are_the_connected_pairs_of_a_loop(people: Collection) -> None:
    for cosine in (0.97, 0.9, 0.8):
        group = list(range(300))
        for a, b in itertools.combinations(range(300), 2):
            if COSINES[a, b] >= cosine:
                group = [min(group[a], group[b]) if one in (group[a], group[b]) else one for one in group]
        expected = [[row for row in range(300) if group[row] == first] for first in sorted(set(group))]
        threshold = float(np.sqrt(2 - 2 * cosine)) if people.metric == "l2" else cosine
        assert insight.duplicates(people, threshold) == [rows for rows in expected if len(rows) > 1]


def test_an_explanation_shows_the_margin_and_the_hubs(people: Collection) -> None:
    (answer,) = insight.explain(people, "person", k=3, ids=[4])
    assert answer.margin == pytest.approx(abs(answer.hits[0].score - answer.hits[1].score))
    vectors = np.concatenate([UNIT, -UNIT[:1]])
    cosines = vectors @ vectors.T - 2 * np.eye(301)
    times = Counter(np.argsort(-cosines, axis=1)[:, :3].ravel().tolist())
    assert answer.hubness == pytest.approx([times[hit.id] / 3 for hit in answer.hits], rel=0.02)  # type: ignore[index]


def test_hard_negatives_are_the_nearest_items_of_other_identities(people: Collection, tmp_path: Path) -> None:
    assert insight.export_hard_negatives(people, "person", tmp_path / "negatives.jsonl", k=4) == 300
    for line in (tmp_path / "negatives.jsonl").read_text().splitlines():
        read = json.loads(line)
        row = read["id"]
        best = {
            person: int(np.argmax(np.where(person == PERSON, COSINES[row], -2)))
            for person in range(PEOPLE)
            if person != PERSON[row]
        }
        expected = sorted(best.values(), key=lambda other: -COSINES[row, other])[:4]
        assert [negative["id"] for negative in read["negatives"]] == expected
        assert read["label"] == f"p{PERSON[row]}"
    with pytest.raises(CollectionError, match="no item has"):
        insight.export_hard_negatives(people, "absent", tmp_path / "none.jsonl")


def test_wilsons_interval_holds_the_share_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).binomial(200, 0.97, 2000)
    inside = [low <= 0.97 <= high for low, high in (wilson(int(hits), 200) for hits in draws)]
    assert 0.93 < np.mean(inside) < 0.98
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(10, 10)[1] == pytest.approx(1)


def test_live_recall_samples_several_queries_of_a_batch_and_fewer_where_they_are_dear() -> None:
    live = LiveRecall(every=10, share=0.01, at_once=16)
    assert [live.due(64) for _ in range(5)] == [0, 0, 16, 0, 16]
    assert [live.due(1) for _ in range(30)].count(1) == 3  # lone ones do not make up for what no batch came to
    dear = LiveRecall(every=10, share=0.01)
    assert sum(dear.due(64, cost=10) for _ in range(1000)) == 64


def test_live_recall_samples_one_query_in_so_many() -> None:
    live = LiveRecall(every=10)
    assert sum(live.due(1) for _ in range(95)) == 9
    live.add(1, 9, 10)
    live.add(1, 10, 10)
    estimate = live.estimate()
    assert (estimate.queries, estimate.sampled, estimate.recall) == (95, 2, 0.95)
    assert estimate.low < 0.95 < estimate.high
