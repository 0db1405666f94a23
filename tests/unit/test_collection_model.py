"""Any sequence of requests leaves a collection as it leaves a dictionary, and searches find what a loop finds."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from raydml.search import Collection, compaction

pytestmark = pytest.mark.timeout(300)

IDS = st.one_of(st.integers(0, 12), st.sampled_from(["a", "b", "1", "ü"]))
COORDINATES = st.integers(-3, 3).map(float)
VECTOR = st.tuples(COORDINATES, COORDINATES, COORDINATES.map(lambda x: x or 1.0))  # never zero; often equal
PAYLOAD = st.fixed_dictionaries({}, optional={"x": st.integers(0, 2), "tags": st.lists(st.sampled_from("pq"))})
ITEMS = st.dictionaries(IDS, st.tuples(VECTOR, PAYLOAD), min_size=1, max_size=6)


class Model(RuleBasedStateMachine):
    """`points` is what the collection must hold, in order of insertion."""

    @initialize(metric=st.sampled_from(["cosine", "l2", "inner_product"]), indexed=st.booleans())
    def begin(self, metric: Any, indexed: bool) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.metric = metric
        self.collection = Collection.open(self.folder / "c", 3, metric)
        self.points: dict[Any, tuple[Any, Any]] = {}
        if indexed:
            self.collection.index_payload("x")

    @rule(items=ITEMS)
    def upsert(self, items: dict[Any, Any]) -> None:
        self.collection.upsert(items, [v for v, _ in items.values()], [p for _, p in items.values()])
        self.points |= items

    @rule(ids=st.lists(IDS, unique=True, max_size=4))
    def delete(self, ids: list[Any]) -> None:
        there = [identifier for identifier in ids if identifier in self.points]
        assert self.collection.delete(ids) == len(there)
        for identifier in there:
            del self.points[identifier]

    @rule(x=st.integers(0, 2))
    def delete_by_filter(self, x: int) -> None:
        there = [identifier for identifier, (_, payload) in self.points.items() if payload.get("x") == x]
        assert self.collection.delete(filter={"x": x}) == len(there)
        for identifier in there:
            del self.points[identifier]

    @rule(ids=st.lists(IDS, unique=True, max_size=3), payload=PAYLOAD, merge=st.booleans())
    def set_payload(self, ids: list[Any], payload: Any, merge: bool) -> None:
        self.collection.set_payload(ids, payload, merge=merge)
        for identifier in ids:
            if identifier in self.points:
                vector, old = self.points[identifier]
                self.points[identifier] = vector, ({**old, **payload} if merge else payload)

    @rule(items=ITEMS, fails=st.booleans())
    def batch(self, items: dict[Any, Any], fails: bool) -> None:
        try:
            with self.collection.batch():
                self.collection.delete(list(self.points)[:2])
                self.collection.upsert(items, [v for v, _ in items.values()], [p for _, p in items.values()])
                self.collection.upsert(list(items)[:1], [(1.0, 1.0, 1.0)])
                if fails:
                    raise KeyError
        except KeyError:
            return
        for identifier in list(self.points)[:2]:
            del self.points[identifier]
        self.points |= items
        self.points[next(iter(items))] = (1.0, 1.0, 1.0), {}

    @rule()
    def seal(self) -> None:
        self.collection.seal()

    @rule()
    def compact(self) -> None:
        compaction.compact(self.collection.path)

    @rule()
    def reopen(self) -> None:
        self.collection.close()
        self.collection = Collection.open(self.folder / "c")

    @rule(query=VECTOR, k=st.integers(1, 20), x=st.one_of(st.none(), st.integers(0, 2)), tag=st.sampled_from(["", "p"]))
    def search(self, query: Any, k: int, x: int | None, tag: str) -> None:
        filter = ({} if x is None else {"x": {"gte": x}}) | ({"tags": tag} if tag else {})
        passing = [
            (identifier, vector)
            for identifier, (vector, payload) in self.points.items()
            if (x is None or payload.get("x", -1) >= x) and (not tag or tag in payload.get("tags", []))
        ]
        expected = sorted(passing, key=lambda point: -round(self.closeness(query, point[1]), 12))  # a stable sort
        found = self.collection.search([query], k=k, filter=filter or None)[0]
        nearness = [round(self.closeness(query, self.points[hit.id][0]), 12) for hit in found]
        assert nearness == [round(self.closeness(query, vector), 12) for _, vector in expected[:k]]
        assert [hit.payload for hit in found] == [self.points[hit.id][1] for hit in found]
        if self.metric != "cosine":  # whose ties are exact only between equal vectors
            assert [hit.id for hit in found] == [identifier for identifier, _ in expected[:k]]

    def closeness(self, query: Any, vector: Any) -> float:
        q, v = np.array(query), np.array(vector)
        if self.metric == "l2":
            return -float(((q - v) ** 2).sum())
        return float((q * v).sum() / (np.sqrt((q * q).sum() * (v * v).sum()) if self.metric == "cosine" else 1))

    @invariant()
    def holds_what_the_dictionary_holds(self) -> None:
        if not hasattr(self, "collection"):
            return
        items = self.collection.scroll(limit=100)
        assert [(i.id, i.vector.tolist(), i.payload) for i in items] == [
            (identifier, list(vector), payload) for identifier, (vector, payload) in self.points.items()
        ]

    def teardown(self) -> None:
        if hasattr(self, "collection"):
            self.collection.check()
            self.collection.close()
            shutil.rmtree(self.folder)


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=12, stateful_step_count=25, deadline=None, database=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
