"""A collection's folder -> its transactions: one to read in for each thread, and one writer for all."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar

from raydml.errors import CollectionError
from raydml.search import checks, database, home
from raydml.search.allowed import Filters
from raydml.search.changes import Change
from raydml.search.embedder import (
    Embedder,
    check_digest,
    check_embedder,
    check_query,
    load_embedder,
    preprocessing_digest,
)
from raydml.search.home import Facts
from raydml.search.items import Array, Metric
from raydml.search.reading import Reading
from raydml.search.recall import LiveRecall
from raydml.search.view import View
from raydml.search.writer import Writer

Answer = TypeVar("Answer")
_TRIES = 5


class Opened:
    """A folder that is open: `read` and `change` are all that touches the database."""

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
        self._live = LiveRecall()
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
        recall: float | None = None,
    ) -> Self:
        """Open the collection in the folder `path`, or create it where there is none.

        Creating takes the dimension (from `model` if not given), the metric (cosine if not given), the digest of the
        model and the recall that approximate indexes must reach; opening checks the first three if they are given.
        `model`, an Embedder or the folder of an exported model, is what images are embedded with. CollectionError
        names a damaged file: of the database now, of a segment when it is first used, or in `check`. ModelMismatch:
        the vectors are of another model.
        """
        path = Path(path)
        source = Path(model).absolute() if isinstance(model, str | Path) else model
        if not home.exists(path):
            folder = str(source) if isinstance(source, Path) else None
            prepared = preprocessing_digest(source)
            if isinstance(source, Path) and (dimension is None or model_digest is None):
                source = load_embedder(source)
            embedder = None if isinstance(source, Path) else source
            new = _new_facts(dimension, metric, model_digest, embedder, folder, recall)
            home.create(path, replace(new, preprocessing_digest=prepared), patience)
        facts = home.read_facts(path)
        _check_agreement(facts, dimension, metric, model_digest)
        if source is not None and not isinstance(source, Path):
            check_embedder(source, facts.dimension, facts.model_digest, facts.preprocessing_digest)
        collection = cls(path, facts, source, patience)
        collection.read(lambda reading: None)
        return collection

    def close(self) -> None:
        """Give back files and connections; a closed collection is not used again."""
        self._writer.close()
        for connection in self._connections:
            connection.close()

    def __enter__(self) -> Self:
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

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Make all changes of this thread in the block one commit, at its end; an error in the block undoes them all.

        Reads in the block see what was there before it. A batch in a batch belongs to the outer one.
        """
        with self._writer.transaction():
            yield

    def query_vectors(self, vectors: Any = None, images: Any = None, texts: Any = None) -> Array:
        """Checked vectors (n, dimension) of what a query gives."""
        given = vectors if vectors is not None else self._embed(images, texts)
        return checks.check_vectors(given, self.dimension, self.metric)

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
        embedder = self.embedder()
        check_query(embedder, texts is not None)
        return embedder.embed(texts if images is None else images)  # type: ignore[arg-type]

    def embedder(self) -> Embedder:
        """The collection's model, loaded when first asked for."""
        with self._loading:
            source = self._model if self._model is not None else self.model_path
            if source is None:
                raise CollectionError("the collection knows no model: give its folder to open(path, model=folder)")
            if isinstance(source, Path):
                source = check_embedder(
                    load_embedder(source), self.dimension, self.model_digest, self.facts.preprocessing_digest
                )
            self._model = source
            return source


def _new_facts(
    dimension: int | None,
    metric: Metric | None,
    digest: str | None,
    embedder: Embedder | None,
    folder: str | None,
    recall: float | None,
) -> Facts:
    """Facts of a collection that is to be created, completed from its model."""
    if embedder is not None:
        check_embedder(embedder, embedder.dimension if dimension is None else dimension, digest)
        dimension, digest = embedder.dimension, embedder.digest
    if dimension is None or isinstance(dimension, bool) or dimension < 1:
        raise CollectionError(f"a new collection needs a dimension of at least 1, not {dimension}")
    if metric not in (None, "cosine", "l2", "inner_product"):
        raise CollectionError(f"metric is cosine, l2 or inner_product, not {metric!r}")
    if recall is not None and not 0 < recall <= 1:
        raise CollectionError(f"recall is a share, above 0 and at most 1, not {recall}")
    return Facts(int(dimension), metric or "cosine", digest, folder, recall=recall or home.RECALL)


def _check_agreement(facts: Facts, dimension: int | None, metric: Metric | None, digest: str | None) -> None:
    if dimension not in (None, facts.dimension) or metric not in (None, facts.metric):
        raise CollectionError(
            f"the collection has dimension {facts.dimension} and metric {facts.metric}, not {dimension} and {metric}"
        )
    check_digest(digest, facts.model_digest)
