"""A durable collection of vectors with ids and payloads, bound to the model that made them."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from raydml.errors import CollectionError, RaydmlError
from raydml.search import backup, checks, database, home, payload_index, queries, sealing
from raydml.search.allowed import Allowed, Filters, passing
from raydml.search.changes import Change
from raydml.search.embedder import Embedder, check_digest, check_embedder, check_query, load_embedder
from raydml.search.filters import parse
from raydml.search.home import Facts
from raydml.search.items import Array, Filter, Hit, Id, Item, Metric, Payload
from raydml.search.queries import Question
from raydml.search.reading import Reading
from raydml.search.rebuilding import rebuilt
from raydml.search.requests import once
from raydml.search.verifying import verify
from raydml.search.view import View
from raydml.search.writer import Writer, writing

Answer = TypeVar("Answer")
SEAL_ROWS = 32_768  # unsealed rows that become a segment; below, they are searched in memory
_TRIES = 5


class Collection:
    """Items by id; `open` makes one. Every change is whole or not at all, and durable when the call returns.

    A read sees everything that was committed when it began, by whatever process, and nothing later. Threads may share
    an object: their changes go to the disk together. There is one writer at a time over all processes; another waits
    for `patience` seconds. After a search, start processes by spawn: a fork copies Faiss's thread pool in a state in
    which the child's first search may hang. A refused request raises CollectionError and changes nothing; a full disk
    is a ResourceError and changes nothing.
    """

    def __init__(self, path: Path, facts: Facts, model: Embedder | Path | None, patience: float) -> None:
        """Use `Collection.open`."""
        self.path = path
        self.facts = facts
        self._model = model
        self._loading = threading.Lock()
        self._latest = View(path, facts.metric, facts.dimension)
        self._publishing = threading.Lock()
        self._filters = Filters()
        self._mine = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._patience = patience
        self._writer = Writer(path, patience, lambda: self._latest, self._publish)

    @classmethod
    def open(
        cls,
        path: str | Path,
        dimension: int | None = None,
        metric: Metric | None = None,
        *,
        model_digest: str | None = None,
        model: Embedder | str | Path | None = None,
        patience: float = 5.0,
    ) -> Collection:
        """Open the collection in the folder `path`, or create it where there is none.

        Creating takes the dimension (from `model` if not given), the metric (cosine if not given) and the digest of
        the model; opening checks those that are given. `model`, an Embedder or the folder of an exported model, is
        what images are embedded with. CollectionError names a damaged file: of the database now, of a segment when
        it is first used, or in `verify`. ModelMismatch: the vectors are of another model.
        """
        path = Path(path)
        source = Path(model).absolute() if isinstance(model, str | Path) else model
        if not home.exists(path):
            folder = str(source) if isinstance(source, Path) else None
            if isinstance(source, Path) and (dimension is None or model_digest is None):
                source = load_embedder(source)
            embedder = None if isinstance(source, Path) else source
            home.create(path, _new_facts(dimension, metric, model_digest, embedder, folder), patience)
        facts = home.read_facts(path)
        _check_agreement(facts, dimension, metric, model_digest)
        if source is not None and not isinstance(source, Path):
            check_embedder(source, facts.dimension, facts.model_digest)
        collection = cls(path, facts, source, patience)
        collection.read(lambda reading: None)
        return collection

    def close(self) -> None:
        """Give back files and connections; a closed collection is not used again."""
        self._writer.close()
        for connection in self._connections:
            connection.close()

    def __enter__(self) -> Collection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.facts.dimension

    @property
    def metric(self) -> Metric:
        """cosine, l2 or inner_product."""
        return self.facts.metric

    @property
    def model_digest(self) -> str | None:
        """SHA-256 of the model that made the vectors; None: any vectors are taken."""
        return self.facts.model_digest

    @property
    def model_path(self) -> Path | None:
        """Folder of the model given at creation."""
        return None if self.facts.model_path is None else Path(self.facts.model_path)

    @property
    def ids(self) -> list[Id]:
        """Ids in order of insertion."""
        query = "SELECT id FROM points ORDER BY key"
        return self.read(lambda reading: [identifier for (identifier,) in reading.connection.execute(query)])

    def count(self, filter: Filter | None = None) -> int:
        """Number of items, of those that pass the filter if one is given."""
        return self.read(
            lambda reading: len(reading.view) if filter is None else len(self._allow(reading, filter).keys)
        )

    def get(self, ids: Iterable[Id]) -> list[Item]:
        """The items with these ids, in this order; CollectionError if one is unknown."""
        checked = checks.check_ids(ids, unique=False)

        def items(reading: Reading) -> list[Item]:
            keys = reading.keys(checked)
            distinct = np.unique(keys)
            points = reading.points(distinct)
            held = dict(zip(distinct.tolist(), reading.items([points[key] for key in distinct.tolist()]), strict=True))
            return [held[key] for key in keys.tolist()]

        return self.read(items)

    def scroll(self, after: Id | None = None, limit: int = 100, filter: Filter | None = None) -> list[Item]:
        """The next `limit` items in order of insertion, those after the item `after`."""
        limit = checks.check_k(limit)

        def items(reading: Reading) -> list[Item]:
            start = 0 if after is None else int(reading.keys(checks.check_ids([after], unique=True))[0])
            if filter is None:
                return reading.items(reading.after(start, limit))
            keys = self._allow(reading, filter).keys
            chosen = keys[np.searchsorted(keys, start, side="right") :][:limit]
            points = reading.points(chosen)
            return reading.items([points[key] for key in chosen.tolist()])

        return self.read(items)

    def upsert(
        self,
        ids: Iterable[Id],
        vectors: Any,
        payloads: Sequence[Payload] | None = None,
        model_digest: str | None = None,
        request: str | None = None,
    ) -> int:
        """Store items: `vectors` (n, dimension), kept as float32, and one JSON object each as payload ({} if none).

        A known id is replaced, vector and payload, and keeps its place in the order of insertion. Gives the number of
        the change. `request` names the request: a second one of this name and content changes nothing.
        """
        check_digest(model_digest, self.model_digest)
        checked = checks.check_ids(ids, unique=True)
        array = checks.check_vectors(vectors, self.dimension, self.metric)
        if len(checked) != len(array):
            raise CollectionError(f"{len(checked)} ids for {len(array)} vectors: give one for each")
        copies = checks.check_payloads(payloads, len(checked))
        content = ("upsert", checked, array.tobytes(), copies)
        sequence = self.change(once(request, content, lambda change: change.upsert(checked, array, copies)))
        if self._latest.state.open_rows >= SEAL_ROWS:
            with contextlib.suppress(RaydmlError):  # the items are durable; the next upsert tries again
                self.seal()
        return sequence

    def delete(
        self, ids: Iterable[Id] | None = None, *, filter: Filter | None = None, request: str | None = None
    ) -> int:
        """Remove items by id, or all that pass the filter; gives how many there were: unknown ids are passed over."""
        if (ids is None) == (filter is None):
            raise CollectionError("delete takes either ids or filter=")
        checked = None if ids is None else checks.check_ids(ids, unique=True)

        def work(change: Change) -> int:
            return change.delete(checked if checked is not None else self._ids_passing(change, filter))

        return self.change(once(request, ("delete", checked, filter), work))

    def set_payload(
        self, ids: Iterable[Id], payload: Payload, *, merge: bool = True, request: str | None = None
    ) -> int:
        """Add fields to the items' payloads, or replace them whole; gives how many of the ids were there."""
        checked = checks.check_ids(ids, unique=True)
        (copied,) = checks.check_payloads([payload], 1)
        content = ("set_payload", checked, copied, merge)
        return self.change(once(request, content, lambda change: change.set_payload(checked, copied, merge)))

    def index_payload(self, field: str) -> None:
        """Keep an index of a field of payloads: filters by its value or range, and `facet`, need not read payloads."""
        self.change(lambda change: payload_index.create(change.connection, field))

    def facet(self, field: str, limit: int = 100) -> list[tuple[Any, int]]:
        """The values of an indexed field with their number of items, the most frequent first."""
        limit = checks.check_k(limit)

        def values(reading: Reading) -> list[tuple[Any, int]]:
            indexed = payload_index.fields(reading.connection)
            if field not in indexed:
                raise CollectionError(f"{field} has no index, only {indexed} have: call index_payload({field!r}) first")
            return payload_index.facet(reading.connection, field, limit)

        return self.read(values)

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Make all changes of this thread in the block one commit, at its end; an error in the block undoes them all.

        Reads in the block see what was there before it. A batch in a batch belongs to the outer one.
        """
        with self._writer.transaction():
            yield

    def seal(self) -> int:
        """Move what is held in memory into a segment; upserts do it by themselves. Gives the number of rows."""

        def work(change: Change) -> int:
            sealing.remove_strangers(self.path, change.connection)
            return sealing.seal(change)

        return self.change(work)

    def compact(self) -> dict[str, Any] | None:
        """Merge segments and drop dead rows, in another process, while this one reads and writes; see `compaction`."""
        command = [sys.executable, "-m", "raydml.search.compaction", str(self.path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CollectionError(f"compaction of {self.path} failed: {done.stderr.strip().splitlines()[-1]}")
        report: dict[str, Any] | None = json.loads(done.stdout)
        return report

    def verify(self) -> None:
        """Read and check everything; CollectionError names what is damaged."""
        self.read(verify)

    def rebuild(self) -> None:
        """Make all files anew that can be derived from the vectors; CollectionError where the vectors are damaged."""
        with writing(self.path, self._patience, sealing.COMPACTING):
            self.change(rebuilt)
        self.change(lambda change: sealing.remove_strangers(self.path, change.connection))

    def snapshot(self, target: str | Path) -> None:
        """Copy the collection, as it is now, to the folder `target`, which appears whole; writers go on meanwhile."""
        backup.snapshot(self.path, Path(target), self._patience)

    @classmethod
    def restore(cls, snapshot: str | Path, path: str | Path) -> Collection:
        """A new collection in the folder `path` from a snapshot, every byte checked."""
        backup.restore(Path(snapshot), Path(path))
        return cls.open(path)

    def search(
        self,
        vectors: Any = None,
        images: Sequence[Any] | None = None,
        texts: Sequence[str] | None = None,
        ids: Iterable[Id] | None = None,
        k: int = 10,
        filter: Filter | None = None,
        model_digest: str | None = None,
        *,
        score_threshold: float | None = None,
        group_by: str | None = None,
        with_payload: bool = True,
        with_vectors: bool = False,
    ) -> list[list[Hit]]:
        """The k nearest items of each query, nearest first, fewer only where fewer exist; equal scores by insertion.

        Exactly one of `vectors` (n, dimension), `images` or `texts` (embedded by the collection's model) and `ids` (of
        items, which are not among their own hits) says what is searched. `filter` is described in `filters`.
        `model_digest` names the model of `vectors`. `score_threshold` is the lowest score of a hit (for l2 the largest
        distance); `group_by`, a field of payloads, leaves the nearest hit of each of its values.
        """
        if sum(query is not None for query in (vectors, images, texts, ids)) != 1:
            raise CollectionError("search takes exactly one of vectors=, images=, texts= and ids=")
        k = checks.check_k(k)
        checks.check_threshold(score_threshold)
        check_digest(model_digest, self.model_digest)
        own = None if ids is None else checks.check_ids(ids, unique=False)
        array = None if own is not None else self.query_vectors(vectors, images, texts)

        def hits(reading: Reading) -> list[list[Hit]]:
            allowed = None if filter is None else self._allow(reading, filter)
            question = Question(k, allowed, score_threshold, group_by, with_payload, with_vectors)
            if array is not None:
                return queries.answer(reading, array, question)
            keys = reading.keys(own or [])
            return queries.answer(reading, reading.vectors(keys), question, keys[:, None])

        return self.read(hits)

    def recommend(
        self,
        positives: Iterable[Id],
        negatives: Iterable[Id] = (),
        k: int = 10,
        filter: Filter | None = None,
    ) -> list[Hit]:
        """Items like the positive ones and unlike the negative ones, all given by id; none of them is a hit."""
        wanted, unwanted = (checks.check_ids(ids, unique=True) for ids in (positives, negatives))
        if not wanted:
            raise CollectionError("recommend needs at least one positive id")
        k = checks.check_k(k)

        def hits(reading: Reading) -> list[Hit]:
            keys = reading.keys([*wanted, *unwanted])
            vectors = reading.vectors(keys)
            query = queries.recommended(reading, vectors[: len(wanted)], vectors[len(wanted) :])
            allowed = None if filter is None else self._allow(reading, filter)
            return queries.answer(reading, query, Question(k, allowed), keys[None])[0]

        return self.read(hits)

    def query_vectors(self, vectors: Any = None, images: Any = None, texts: Any = None) -> Array:
        """Checked vectors (n, dimension) of what a query gives."""
        given = vectors if vectors is not None else self._embed(images, texts)
        return checks.check_vectors(given, self.dimension, self.metric)

    def read(self, work: Callable[[Reading], Answer]) -> Answer:
        """Do the work in one read transaction; what other processes commit meanwhile is not seen."""
        for attempt in range(_TRIES):
            with database.translating(self.path):
                connection = self._connection()
                connection.execute("BEGIN")
                try:
                    return work(Reading(connection, self._view(connection)))
                except FileNotFoundError as error:  # a compaction replaced the segment before it was opened
                    if attempt == _TRIES - 1:
                        raise database.damaged(Path(error.filename or error.args[0]), "it is missing") from error
                finally:
                    connection.execute("ROLLBACK")
        raise AssertionError("the last attempt returns or raises")

    def change(self, work: Callable[[Change], Answer]) -> Answer:
        """Do the work as one change, committed with those of other threads."""
        return self._writer.change(work)

    def _allow(self, reading: Reading, filter: Filter) -> Allowed:
        return self._filters.allowed(reading.connection, reading.view.state.sequence, filter)

    def _ids_passing(self, change: Change, filter: Filter | None) -> list[Id]:
        keys = passing(change.connection, parse(filter or {}))
        return sealing.ids_of(change.view, change.connection, keys.tolist())

    def _view(self, connection: sqlite3.Connection) -> View:
        with self._publishing:
            view = self._latest.refreshed(connection)
            if view.state.sequence > self._latest.state.sequence:
                self._latest = view
            return view

    def _publish(self, view: View) -> None:
        with self._publishing:
            if view.state.sequence > self._latest.state.sequence:
                self._latest = view

    def _connection(self) -> sqlite3.Connection:
        """This thread's own."""
        if not hasattr(self._mine, "connection"):
            self._mine.connection = database.connect(self.path)
            self._connections.append(self._mine.connection)
        connection: sqlite3.Connection = self._mine.connection
        return connection

    def _embed(self, images: Sequence[Any] | None, texts: Sequence[str] | None) -> Array:
        embedder = self._embedder()
        check_query(embedder, texts is not None)
        return embedder.embed(texts if images is None else images)  # type: ignore[arg-type]

    def _embedder(self) -> Embedder:
        with self._loading:
            source = self._model if self._model is not None else self.model_path
            if source is None:
                raise CollectionError("the collection knows no model: give its folder to open(path, model=folder)")
            if isinstance(source, Path):
                source = check_embedder(load_embedder(source), self.dimension, self.model_digest)
            self._model = source
            return source


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
