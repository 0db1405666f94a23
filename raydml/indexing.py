"""A run's embeddings in the collection that its spec names, for the model that made them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raydml.data import Dataset
from raydml.errors import SpecError
from raydml.runs import set_aside
from raydml.search import Collection, Facts
from raydml.spec import JobSpec
from raydml.training.record import RunRecord


def index_embeddings(spec: JobSpec, record: RunRecord, items: Dataset, shelf: Path) -> None:
    """Fill the collection; one that an earlier model of this run filled is kept under the next free `name~1`."""
    assert spec.index is not None
    chosen = items.indices(spec.index.split)
    digest = record.read()["sha256"]
    path = shelf / spec.index.collection
    if path.exists() and _opened_facts(path).model_digest != digest:
        set_aside(path)
    collection = Collection.open(
        path, spec.model.dimension, spec.index.metric, model_digest=digest, model=record.folder / "model"
    )
    collection.upsert(
        ids=[items.items.ids[item] for item in chosen],
        vectors=np.load(record.folder / "embeddings" / "vectors.npy"),
        payloads=[items.items.payloads[item] for item in chosen],
        model_digest=digest,
    )
    record.change(collection=spec.index.collection)


def check_collection(spec: JobSpec, record: RunRecord, shelf: Path) -> None:
    """Refuse to fill a collection of somebody else's: its vectors come from another model."""
    path = shelf / spec.index.collection if spec.index else None
    if path is None or not path.exists():
        return
    source = _opened_facts(path).model_path
    if source is None or Path(source).parent != record.folder:
        raise SpecError(
            f"index.collection: {path} is filled already, by {source or 'hand'}: take another name or remove it"
        )


def _opened_facts(path: Path) -> Facts:
    """Of a collection that is closed again: an open one must not be renamed."""
    with Collection.open(path) as collection:
        return collection.facts
