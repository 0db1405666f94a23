"""A durable collection of vectors with ids and payloads, bound to the model that made them, searched exactly."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from raydml.errors import CollectionError
from raydml.search import checks, store
from raydml.search.embedder import Embedder, check_digest, check_embedder, check_query, load_embedder
from raydml.search.filters import allowed_rows
from raydml.search.items import Array, Filter, Hit, Id, Item, Metric, Payload
from raydml.search.nearest import nearest
from raydml.search.snapshot import Facts, Snapshot


class Collection:
    """Items by id; `open` makes one. Every change is whole or not at all, and durable when the call returns.

    Reads see the version of opening or of this object's last change; open again to see what others wrote. There is
    one writer at a time over all processes, and the threads of one object take turns. After a search, start
    processes by spawn: a fork copies Faiss's thread pool in a state in which the child's first search may hang.
    A refused request raises CollectionError and changes nothing; a full disk is a ResourceError and changes nothing.
    """

    def __init__(self, path: Path, pointer: str, snapshot: Snapshot, model: Embedder | Path | None) -> None:
        """Use `Collection.open`."""
        self.path = path
        self._snapshot = snapshot
        self._pointer = pointer
        self._model = model
        self._draft: Snapshot | None = None
        self._turn = threading.RLock()

    @classmethod
    def open(
        cls,
        path: str | Path,
        dimension: int | None = None,
        metric: Metric | None = None,
        *,
        model_digest: str | None = None,
        model: Embedder | str | Path | None = None,
    ) -> Collection:
        """Open the collection in the folder `path`, verifying every file, or create it where there is none.

        Creating takes the dimension (from `model` if not given), the metric (cosine if not given) and the digest of
        the model; opening checks those that are given. `model`, an Embedder or the folder of an exported model, is
        what images are embedded with. CollectionError names a damaged file; ModelMismatch: of another model.
        """
        path = Path(path)
        source = Path(model).absolute() if isinstance(model, str | Path) else model
        if not store.exists(path):
            folder = str(source) if isinstance(source, Path) else None
            if isinstance(source, Path) and (dimension is None or model_digest is None):
                source = load_embedder(source)
            embedder = None if isinstance(source, Path) else source
            _create(path, _new_facts(dimension, metric, model_digest, embedder, folder))
        pointer = store.current(path)  # before reading: a commit in between then shows as a change, and is not missed
        snapshot = store.read(path)
        _check_agreement(snapshot.facts, dimension, metric, model_digest)
        if source is not None and not isinstance(source, Path):
            check_embedder(source, snapshot.facts.dimension, snapshot.facts.model_digest)
        return cls(path, pointer, snapshot, source)

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self._snapshot.facts.dimension

    @property
    def metric(self) -> Metric:
        """cosine, l2 or inner_product."""
        return self._snapshot.facts.metric

    @property
    def model_digest(self) -> str | None:
        """SHA-256 of the model that made the vectors; None: any vectors are taken."""
        return self._snapshot.facts.model_digest

    @property
    def model_path(self) -> Path | None:
        """Folder of the model given at creation."""
        folder = self._snapshot.facts.model_path
        return None if folder is None else Path(folder)

    @property
    def ids(self) -> list[Id]:
        """Ids in order of insertion."""
        return list(self._snapshot.ids)

    def count(self, filter: Filter | None = None) -> int:
        """Number of items, of those that pass the filter if one is given."""
        checks.check_filter(filter)
        snapshot = self._snapshot
        return len(snapshot.ids) if filter is None else len(allowed_rows(snapshot.payloads, filter))

    def get(self, ids: Iterable[Id]) -> list[Item]:
        """The items with these ids, in this order; CollectionError if one is unknown."""
        snapshot = self._snapshot
        return [
            Item(snapshot.ids[row], snapshot.vectors[row].copy(), copy.deepcopy(snapshot.payloads[row]))
            for row in _rows(snapshot, ids)
        ]

    def upsert(
        self,
        ids: Iterable[Id],
        vectors: Any,
        payloads: Sequence[Payload] | None = None,
        model_digest: str | None = None,
    ) -> None:
        """Store items: `vectors` (n, dimension), kept as float32, and one JSON object each as payload ({} if none).

        A known id is replaced, vector and payload, and keeps its place in the order of insertion.
        """
        check_digest(model_digest, self.model_digest)
        checked = checks.check_ids(ids, unique=True)
        array = checks.check_vectors(vectors, self.dimension, self.metric)
        if len(checked) != len(array):
            raise CollectionError(f"{len(checked)} ids for {len(array)} vectors: give one for each")
        copies = checks.check_payloads(payloads, len(checked))
        with self.batch():
            assert self._draft is not None
            self._draft = self._draft.with_items(checked, array, copies)

    def delete(self, ids: Iterable[Id]) -> int:
        """Remove items; gives how many there were, as unknown ids are passed over."""
        checked = checks.check_ids(ids, unique=True)
        with self.batch():
            assert self._draft is not None
            before = len(self._draft.ids)
            self._draft = self._draft.without(checked)
            return before - len(self._draft.ids)

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Make all upserts and deletes in the block one commit, at its end; an error in the block undoes them all.

        Searches in the block see what was there before it. A batch in a batch belongs to the outer one.
        """
        with self._turn:
            if self._draft is not None:
                yield
                return
            with store.writing(self.path):
                self._catch_up()
                self._draft = self._snapshot
                try:
                    yield
                    self._commit(self._draft)
                finally:
                    self._draft = None

    def search(
        self,
        vectors: Any = None,
        images: Sequence[Any] | None = None,
        texts: Sequence[str] | None = None,
        ids: Iterable[Id] | None = None,
        k: int = 10,
        filter: Filter | None = None,
        model_digest: str | None = None,
    ) -> list[list[Hit]]:
        """The k nearest items of each query, nearest first, fewer only where fewer exist; equal scores by insertion.

        Exactly one of `vectors` (n, dimension), `images` or `texts` (embedded by the collection's model) and `ids` (of
        items, which are not among their own hits) says what is searched. `filter`, {field: value} or {field: [values]},
        keeps items whose payload has one of the values in every field. `model_digest` names the model of `vectors`.
        """
        if sum(query is not None for query in (vectors, images, texts, ids)) != 1:
            raise CollectionError("search takes exactly one of vectors=, images=, texts= and ids=")
        k = checks.check_k(k)
        checks.check_filter(filter)
        check_digest(model_digest, self.model_digest)
        snapshot = self._snapshot
        if ids is not None:
            rows = _rows(snapshot, ids)
            return _search(snapshot, snapshot.vectors[rows], rows, k, filter)
        queries = vectors if vectors is not None else self._embed(images, texts)
        array = checks.check_vectors(queries, self.dimension, self.metric)
        return _search(snapshot, array, np.full(len(array), -1), k, filter)

    def _catch_up(self) -> None:
        pointer = store.current(self.path)
        if pointer != self._pointer:
            self._snapshot, self._pointer = store.read(self.path), pointer

    def _commit(self, draft: Snapshot) -> None:
        if draft is self._snapshot:
            return
        draft = replace(draft, version=self._snapshot.version + 1)
        store.commit(self.path, draft)
        self._snapshot, self._pointer = draft, store.current(self.path)

    def _embed(self, images: Sequence[Any] | None, texts: Sequence[str] | None) -> Array:
        embedder = self._embedder()
        check_query(embedder, texts is not None)
        return embedder.embed(texts if images is None else images)  # type: ignore[arg-type]

    def _embedder(self) -> Embedder:
        with self._turn:
            source = self._model if self._model is not None else self.model_path
            if source is None:
                raise CollectionError("the collection knows no model: give its folder to open(path, model=folder)")
            if isinstance(source, Path):
                source = check_embedder(load_embedder(source), self.dimension, self.model_digest)
            self._model = source
            return source


def _create(path: Path, facts: Facts) -> None:
    with store.writing(path):
        if not store.exists(path):
            store.commit(path, Snapshot.empty(facts))


def _new_facts(
    dimension: int | None, metric: Metric | None, digest: str | None, embedder: Embedder | None, folder: str | None
) -> Facts:
    """Facts of a collection that is to be created, completed from its model."""
    if embedder is not None:
        check_embedder(embedder, embedder.dimension if dimension is None else dimension, digest)
        dimension, digest = embedder.dimension, embedder.digest
    if dimension is None or isinstance(dimension, bool) or dimension < 1:
        raise CollectionError(f"a new collection needs a dimension of at least 1, not {dimension}")
    if metric not in (None, "cosine", "l2", "inner_product"):
        raise CollectionError(f"metric is cosine, l2 or inner_product, not {metric!r}")
    return Facts(int(dimension), metric or "cosine", digest, folder)


def _check_agreement(facts: Facts, dimension: int | None, metric: Metric | None, digest: str | None) -> None:
    if dimension not in (None, facts.dimension) or metric not in (None, facts.metric):
        raise CollectionError(
            f"the collection has dimension {facts.dimension} and metric {facts.metric}, not {dimension} and {metric}"
        )
    check_digest(digest, facts.model_digest)


def _rows(snapshot: Snapshot, ids: Iterable[Id]) -> Array:
    checked = checks.check_ids(ids, unique=False)
    unknown = [identifier for identifier in checked if identifier not in snapshot.row_of]
    if unknown:
        raise CollectionError(f"{len(unknown)} ids are not in the collection: {unknown[:10]}", ids=unknown[:10])
    return np.array([snapshot.row_of[identifier] for identifier in checked], dtype=np.int64)


def _search(snapshot: Snapshot, queries: Array, own: Array, k: int, filter: Filter | None) -> list[list[Hit]]:
    """Hits of each query, without its own row (-1: none)."""
    rows = np.arange(len(snapshot.ids)) if filter is None else allowed_rows(snapshot.payloads, filter)
    if len(queries) == 0 or len(rows) == 0:
        return [[] for _ in queries]
    searched = snapshot.searched if len(rows) == len(snapshot.ids) else snapshot.searched.only(rows)
    places = np.searchsorted(rows, own)  # of own rows among the allowed ones; wrong where it is not among them
    excluded = np.where(np.isin(own, rows), places, -1)
    return [
        [_hit(snapshot, int(row), float(score)) for row, score in zip(rows[found], scores, strict=True)]
        for found, scores in nearest(queries, searched, k, excluded)
    ]


def _hit(snapshot: Snapshot, row: int, score: float) -> Hit:
    return Hit(snapshot.ids[row], score, copy.deepcopy(snapshot.payloads[row]))
