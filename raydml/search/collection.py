"""A durable collection of vectors with ids and payloads, bound to the model that made them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from raydml.errors import CollectionError
from raydml.search import checks, engine, queries
from raydml.search.embedder import check_digest
from raydml.search.items import Array, Filter, Hit, Id
from raydml.search.queries import Question
from raydml.search.reading import Reading
from raydml.search.recall import num_common
from raydml.search.segments import Segment
from raydml.search.store import Store


class Collection(Store):
    """Items by id; `open` makes one. Every change is whole or not at all, and durable when the call returns.

    A read sees everything that was committed when it began, by whatever process, and nothing later. Threads may share
    an object: their changes go to the disk together. There is one writer at a time over all processes; another waits
    for `patience` seconds. After a search, start processes by spawn: a fork copies Faiss's thread pool in a state in
    which the child's first search may hang. A refused request raises CollectionError and changes nothing; a full disk
    is a ResourceError and changes nothing.
    """

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
        exact: bool = False,
    ) -> list[list[Hit]]:
        """The k nearest items of each query, nearest first, fewer only where fewer exist; equal scores by insertion.

        Exactly one of `vectors` (n, dimension), `images` or `texts` (embedded by the collection's model) and `ids` (of
        items, which are not among their own hits) says what is searched. `filter` is described in `filters`.
        `model_digest` names the model of `vectors`. `score_threshold` is the lowest score of a hit (for l2 the largest
        distance); `group_by`, a field of payloads, leaves the nearest hit of each of its values. `exact` uses no index.
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
            question = Question(k, allowed, score_threshold, group_by, with_payload, with_vectors, exact)
            if array is not None:
                self._sample(reading, array, question)
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

    def stats(self) -> dict[str, Any]:
        """Points, parts with their indexes, and the recall of this object's approximate searches, with its interval."""

        def facts(reading: Reading) -> dict[str, Any]:
            parts = [
                {"rows": len(part.rows), "dead": part.num_dead}
                | (part.rows.described.index if isinstance(part.rows, Segment) else {"unsealed": True})
                for part in reading.view.parts.values()
            ]
            return {"points": len(reading.view), "sequence": reading.view.state.sequence, "parts": parts}

        return self.read(facts) | {"recall": asdict(self._live.estimate())}

    def _sample(self, reading: Reading, array: Array, question: Question) -> None:
        """Now and then, search the first queries exactly too, and count what the index misses."""
        if question.exact or question.allowed is not None or not len(array):
            return
        view, k = reading.view, min(question.k, len(reading.view))
        indexes = [index for part in view.parts.values() if (index := engine.approximate(part, k)) is not None]
        if indexes and (count := self._live.due(len(array), max(index.cost_of_exact for index in indexes))):
            found, truth = (engine.search(view, array[:count], k, exact=exact)[1] for exact in (False, True))
            self._live.add(count, num_common(found, truth), int((truth >= 0).sum()))
