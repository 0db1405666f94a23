"""Nothing in; a trained embedding of characters, a collection of unseen ones, queries and two pictures out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from raydml import run
from raydml.data import Dataset, open_dataset
from raydml.progress import Progress
from raydml.report import Row, Tile, draw_curves, draw_neighbours
from raydml.search import Hit
from raydml.spec import JobSpec
from raydml.specfile import load_spec

QUERIES = 8
NEIGHBOURS = 9


@dataclass(frozen=True)
class Query:
    """One entry of the collection and its nearest others."""

    id: str
    label: str
    hits: list[Hit]


@dataclass(frozen=True)
class Demo:
    """What the demo made: the run's summary, some queries, and where the pictures are."""

    summary: dict[str, Any]
    queries: list[Query]
    pictures: dict[str, Path]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        queries = [
            {
                "query": query.id,
                "label": query.label,
                "hits": [{"id": hit.id, "score": hit.score} for hit in query.hits],
            }
            for query in self.queries
        ]
        return {**self.summary, "queries": queries, "pictures": {name: str(at) for name, at in self.pictures.items()}}


def demo_spec() -> JobSpec:
    """The spec that is shipped with the package."""
    with as_file(files("raydml") / "demo.yaml") as path:
        return load_spec(path)


def run_demo(listen: Callable[[Progress], None] | None = None, spec: JobSpec | None = None) -> Demo:
    """Train anew, search, draw. The queries are drawn by the spec's seed among the test classes, not picked."""
    spec = spec or demo_spec()
    trained = run.train(spec, again=True, listen=listen)
    dataset = open_dataset(spec.data, trained.home)
    chosen = _choose(dataset, spec.seed)
    found = trained.collection.search(ids=[dataset.items.ids[item] for item in chosen], k=NEIGHBOURS)
    queries = [
        Query(dataset.items.ids[item], _label(dataset, item), hits) for item, hits in zip(chosen, found, strict=True)
    ]
    pictures = {"neighbours": trained.folder / "neighbours.png", "curves": trained.folder / "curves.png"}
    draw_neighbours(_rows(dataset, queries), pictures["neighbours"])
    draw_curves(trained.folder / "metrics.jsonl", pictures["curves"], trained.baseline.get("map_at_r"))
    return Demo(trained.summary(), queries, pictures)


def _choose(dataset: Dataset, seed: int) -> list[int]:
    """One test item of each of a few test classes."""
    random = np.random.default_rng(seed)
    items = dataset.indices("test")
    labels = dataset.items.labels[items]
    classes = random.permutation(np.unique(labels))[:QUERIES]
    return [int(random.choice(items[labels == label])) for label in classes]


def _rows(dataset: Dataset, queries: list[Query]) -> list[Row]:
    place = {name: item for item, name in enumerate(dataset.items.ids)}

    def tile(name: str) -> Tile:
        return Tile(dataset.read(place[name]), _label(dataset, place[name]))

    return [Row(tile(query.id), [tile(str(hit.id)) for hit in query.hits]) for query in queries]


def _label(dataset: Dataset, item: int) -> str:
    return dataset.items.class_names[int(dataset.items.labels[item])]
