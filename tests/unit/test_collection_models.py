"""Collections belong to models: another's vectors are refused, a new one fills a shadow, names switch all at once."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydml.errors import CollectionError, ModelMismatch
from raydml.search import Collection, shadow
from raydml.search.aliases import REGISTRY, Aliases

pytestmark = pytest.mark.timeout(300)
INPUTS = {f"item {row}": np.random.default_rng(row).standard_normal(6) + 3 * np.eye(6)[row % 6] for row in range(120)}


class Linear:
    """Embeds by a matrix, and prepares its inputs in one way or another."""

    dimension = 3

    def __init__(self, seed: int, scale: float, prepared: str = "p") -> None:
        self.matrix = np.random.default_rng(seed).standard_normal((6, 3)) * scale
        self.digest = f"{seed}".rjust(64, "0")
        self.preprocessing_digest = prepared

    def embed(self, inputs: Any) -> Any:
        return (np.asarray(inputs) @ self.matrix).astype(np.float32)


def filled(path: Path, model: Linear) -> Collection:
    collection = Collection.open(path, model=model)
    payloads = [{"kind": int(name.split()[1]) % 6} for name in INPUTS]
    collection.upsert(INPUTS, model.embed(list(INPUTS.values())), payloads, model_digest=model.digest)
    return collection


def test_vectors_weights_and_preprocessing_of_another_model_are_refused(tmp_path: Path) -> None:
    model = Linear(1, 1.0)
    collection = filled(tmp_path / "c", model)
    other = Linear(2, 1.0)
    vectors = other.embed(list(INPUTS.values())[:2])
    refused: list[Callable[[], Any]] = [
        lambda: collection.search(vectors, model_digest=other.digest),
        lambda: collection.upsert(["x", "y"], vectors, model_digest=other.digest),
        lambda: Collection.open(tmp_path / "c", model=other),
        lambda: Collection.open(tmp_path / "c", model=Linear(1, 1.0, prepared="q")),
    ]
    for request in refused:
        with pytest.raises(ModelMismatch):
            request()
    assert Collection.open(tmp_path / "c", model=model).search(images=[INPUTS["item 3"]])[0][0].id == "item 3"
    assert collection.known(["x", "item 1"]) == {"item 1"}


def test_a_shadow_is_filled_once_and_compared_with_a_loop(tmp_path: Path) -> None:
    current = filled(tmp_path / "old", Linear(1, 1.0))
    new = Linear(5, 2.0)
    with Collection.open(tmp_path / "new", model=new) as shadowed:
        assert shadow.fill(current, shadowed, lambda item: INPUTS[str(item.id)]) == 120
        assert shadow.fill(current, shadowed, lambda item: INPUTS[str(item.id)]) == 0
        assert shadowed.ids == current.ids
        report = shadow.compare(current, shadowed, "kind", k=5, false_accept_rate=0.05)
    right, neighbours = [], []
    for model in (Linear(1, 1.0), new):
        vectors = model.embed(list(INPUTS.values())).astype(float)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        nearest = np.argsort(-(vectors @ vectors.T - 5 * np.eye(120)), axis=1)[:, :5]
        right.append(nearest[:, 0] % 6 == np.arange(120) % 6)
        neighbours.append(nearest)
    assert (report.queries, report.current.right, report.shadow.right) == (120, right[0].sum(), right[1].sum())
    assert (report.better, report.worse) == ((right[1] & ~right[0]).sum(), (right[0] & ~right[1]).sum())
    kept = [len(np.intersect1d(*pair)) / 5 for pair in zip(*neighbours, strict=True)]
    assert report.kept_neighbours == pytest.approx(np.mean(kept))
    assert report.changed_first == pytest.approx(np.mean(neighbours[0][:, 0] != neighbours[1][:, 0]))
    shares = (neighbours[1] % 6 == (np.arange(120) % 6)[:, None]).mean(axis=1)
    assert report.shadow.recall == pytest.approx(shares.mean())
    assert report.shadow.threshold is not None
    with pytest.raises(CollectionError, match="fill the shadow"):
        shadow.compare(current, Collection.open(tmp_path / "empty", 3), "kind")


def made(root: Path, *names: str) -> Aliases:
    for name in names:
        Collection.open(root / name, 2).close()
    return Aliases(root)


def test_aliases_switch_all_at_once_or_not_at_all_and_roll_back(tmp_path: Path) -> None:
    aliases = made(tmp_path, "one", "two")
    assert aliases.current().number == 0
    first = aliases.switch({"now": "one", "next": "two"})
    assert aliases.resolve("now") == tmp_path / "one"
    assert aliases.resolve("two") == tmp_path / "two"
    refused: list[dict[str, Any]] = [
        {"now": "two", "next": "absent"}, {"one": "two"}, {"a/b": "one"}, {"now": "../one"}, {"": "one"},
        {"now": "next"},
    ]  # fmt: skip
    for changes in refused:
        with pytest.raises(CollectionError):
            aliases.switch(changes)
        assert aliases.current() == first
    with pytest.raises(CollectionError, match="of generation 1, not 0"):
        aliases.switch({"now": "two"}, expected=0)
    assert aliases.switch({"now": "two", "next": None}, expected=1).collections == {"now": "two"}
    back = Aliases(tmp_path).roll_back(expected=2)
    assert (back.number, dict(back.collections)) == (3, {"now": "one", "next": "two"})
    for name in ("absent", "", "../one", "."):
        with pytest.raises(CollectionError, match="no collection or alias"):
            aliases.resolve(name)


def test_of_two_switches_that_saw_the_same_generation_one_is_refused(tmp_path: Path) -> None:
    aliases = made(tmp_path, "one", "two")
    outcomes: list[str] = []

    def switch(target: str) -> None:
        try:
            aliases.switch({"now": target}, expected=0)
            outcomes.append(target)
        except CollectionError:
            outcomes.append("refused")

    threads = [threading.Thread(target=switch, args=(target,)) for target in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(outcomes), outcomes.count("refused")) == (2, 1)
    assert aliases.current().number == 1


def test_a_damaged_alias_database_is_refused(tmp_path: Path) -> None:
    aliases = made(tmp_path, "one")
    aliases.switch({"now": "one"})
    path = tmp_path / REGISTRY
    data = path.read_bytes()
    path.write_bytes(data.replace(json.dumps({"now": "one"}).encode(), json.dumps({"now": "onf"}).encode()))
    with pytest.raises(CollectionError, match="checksum"):
        aliases.current()
    path.write_bytes(data[:700])
    with pytest.raises(CollectionError):
        aliases.current()
