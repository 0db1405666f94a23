"""What is asked of a collection: neighbours, classes, identities, duplicates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from raydml.client import bodies
from raydml.client.calls import LONG, Call, given
from raydml.client.documents import Class, Document, Explanation, Hit, Id, Identity, Threshold, Verdict
from raydml.client.resource import Resource, S, operation
from raydml.errors import DataError

ONE = "/v1/collections/{name}"
Filter = Mapping[str, Any]
Read = TypeVar("Read", bound=Document)


class Queries(Resource[S]):
    """The questions to one collection; exactly one of vectors, images, texts and ids says what they are about.

    `vectors` (n, dimension): an array travels as float32 bytes, lists as they are. `images` are files or their bytes.
    """

    name: str

    def __init__(self, sender: S, name: str) -> None:
        super().__init__(sender)
        self.name = name

    @property
    def names(self) -> dict[str, str]:
        """What the paths of the collection are filled in with."""
        return {"name": self.name}

    @operation
    def search(
        self,
        vectors: Any = None,
        images: Iterable[Any] | None = None,
        texts: Iterable[str] | None = None,
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
        min_lsn: int | None = None,
    ) -> Call[list[list[Hit]]]:
        """The k nearest points of each query, nearest first."""
        body = {
            **question(vectors, images, texts, ids, k=k, filter=filter, model_digest=model_digest, min_lsn=min_lsn),
            **given(score_threshold=score_threshold, group_by=group_by),
            **{"with_payload": with_payload, "with_vectors": with_vectors, "exact": exact},
        }
        headers = bodies.BINARY if with_vectors else {}
        read = _counted(vectors, _hits)
        slow = None if images is None and texts is None else LONG  # the first ones wait for the model to be loaded
        return Call(
            "POST", f"{ONE}/search", read, self.names, body=body, headers=headers, repeatable=True, seconds=slow
        )

    @operation
    def search_batch(self, searches: Iterable[Mapping[str, Any]]) -> Call[list[list[list[Hit]]]]:
        """Several searches at once, each a mapping of what `search` takes; one that is refused refuses all."""
        asked = [dict(search) for search in searches]
        vectors = [search.get("vectors") for search in asked]
        body = {"searches": [{**search, **question(**_query_of(search))} for search in asked]}

        def read(document: Any) -> list[list[list[Hit]]]:
            return [_counted(given, _hits)(answer) for given, answer in zip(vectors, document["answers"], strict=True)]

        binary = any(search.get("with_vectors") for search in asked)
        headers = bodies.BINARY if binary else {}
        return Call("POST", f"{ONE}/search:batch", read, self.names, body=body, headers=headers, repeatable=True)

    @operation
    def recommend(
        self,
        positives: Iterable[Id],
        negatives: Iterable[Id] = (),
        k: int = 10,
        filter: Filter | None = None,
        *,
        min_lsn: int | None = None,
    ) -> Call[list[Hit]]:
        """Points like the positive ones and unlike the negative ones, all given by id; none of them is a hit."""
        body = {
            **{"positives": list(positives), "negatives": list(negatives), "k": k},
            **given(filter=filter, min_lsn=min_lsn),
        }
        return Call("POST", f"{ONE}/recommend", lambda read: _hits(read)[0], self.names, body=body, repeatable=True)

    @operation
    def classify(
        self,
        field: str,
        vectors: Any = None,
        images: Iterable[Any] | None = None,
        texts: Iterable[str] | None = None,
        ids: Iterable[Id] | None = None,
        k: int = 10,
        filter: Filter | None = None,
        *,
        least_share: float = 0.5,
        least_score: float | None = None,
    ) -> Call[list[Class]]:
        """The commonest value of a field among each query's nearest points; None where too few agree."""
        body = {
            **question(vectors, images, texts, ids, k=k, filter=filter),
            **{"field": field, "least_share": least_share},
            **given(least_score=least_score),
        }
        read = _counted(vectors, _results_of(Class))
        return Call("POST", f"{ONE}/classify", read, self.names, body=body, repeatable=True)

    @operation
    def calibrate(self, field: str, kind: str, false_accept_rate: float = 0.01, seed: int = 0) -> Call[Threshold]:
        """The threshold for verify (kind `pairs`) or `identify` at which strangers are accepted so seldom."""
        body = {"field": field, "kind": kind, "false_accept_rate": false_accept_rate, "seed": seed}
        return Call(
            "POST", f"{ONE}/calibrate", Threshold.model_validate, self.names, body=body, repeatable=True, seconds=LONG
        )

    @operation
    def verify(
        self, pairs: Iterable[tuple[Id, Id]], threshold: Threshold, *, min_lsn: int | None = None
    ) -> Call[list[Verdict]]:
        """Whether the two points of each pair are the same, by the threshold that calibrate answered."""
        body = {
            **{"pairs": [list(pair) for pair in pairs], "threshold": _threshold(threshold)},
            **given(min_lsn=min_lsn),
        }
        return Call("POST", f"{ONE}/verify", _results_of(Verdict), self.names, body=body, repeatable=True)

    @operation
    def identify(
        self,
        threshold: Threshold,
        vectors: Any = None,
        images: Iterable[Any] | None = None,
        texts: Iterable[str] | None = None,
        ids: Iterable[Id] | None = None,
        k: int = 10,
        filter: Filter | None = None,
    ) -> Call[list[Identity]]:
        """Who each query is, by the threshold that calibrate answered; None for somebody unknown."""
        body = {**question(vectors, images, texts, ids, k=k, filter=filter), "threshold": _threshold(threshold)}
        read = _counted(vectors, _results_of(Identity))
        return Call("POST", f"{ONE}/identify", read, self.names, body=body, repeatable=True)

    @operation
    def explain(
        self,
        field: str,
        vectors: Any = None,
        images: Iterable[Any] | None = None,
        texts: Iterable[str] | None = None,
        ids: Iterable[Id] | None = None,
        k: int = 10,
        filter: Filter | None = None,
        *,
        seed: int = 0,
        min_lsn: int | None = None,
    ) -> Call[list[Explanation]]:
        """Why each query finds what it finds; `field` of payloads holds the identity."""
        about = question(vectors, images, texts, ids, k=k, filter=filter, min_lsn=min_lsn)
        read = _counted(vectors, _results_of(Explanation))
        body = {**about, "field": field, "seed": seed}
        return Call("POST", f"{ONE}/explain", read, self.names, body=body, repeatable=True, seconds=LONG)

    @operation
    def hard_negatives(self, field: str, k: int = 5, *, min_lsn: int | None = None) -> Call[str]:
        """JSON lines of each point's nearest points of other identities: a file for `batch.sampling.negatives`."""
        body = {"field": field, "k": k, **given(min_lsn=min_lsn)}
        headers = {"Accept": "application/x-ndjson"}
        return Call(
            "POST",
            f"{ONE}/hard-negatives",
            lambda read: read or "",
            self.names,
            body=body,
            headers=headers,
            repeatable=True,
            seconds=LONG,
        )

    @operation
    def duplicates(self, threshold: float, *, min_lsn: int | None = None) -> Call[list[list[Id]]]:
        """Groups of ids of points that are nearly the same; every point is searched."""
        body = {"threshold": threshold, **given(min_lsn=min_lsn)}
        return Call(
            "POST",
            f"{ONE}/duplicates",
            lambda read: read["groups"],
            self.names,
            body=body,
            repeatable=True,
            seconds=LONG,
        )


def question(
    vectors: Any = None,
    images: Iterable[Any] | None = None,
    texts: Iterable[str] | None = None,
    ids: Iterable[Id] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """A query as the body says it. Raises DataError where it is not about exactly one thing."""
    if sum(about is not None for about in (vectors, images, texts, ids)) != 1:
        raise DataError("give exactly one of vectors=, images=, texts= and ids=")
    about = given(
        vectors=None if vectors is None else bodies.vectors(vectors),
        images=None if images is None else bodies.images(images),
        texts=None if texts is None else list(texts),
        ids=None if ids is None else list(ids),
    )
    return about | given(**options)


def _query_of(search: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a search that says what it is about."""
    return {name: search[name] for name in ("vectors", "images", "texts", "ids") if name in search}


def _counted(vectors: Any, read: Any) -> Any:
    """Read an answer, and compare its length with the rows of an array, whose bytes do not say where a row ends."""

    def counted(document: Any) -> Any:
        results: Sequence[Any] = read(document)
        if vectors is not None and len(results) != len(vectors):
            raise DataError(
                f"{len(vectors)} vectors of shape {getattr(vectors, 'shape', None)} were taken for {len(results)}: the "
                f"collection's vectors have another dimension"
            )
        return results

    return counted


def _hits(document: Any) -> list[list[Hit]]:
    return [[Hit.model_validate(hit) for hit in hits] for hits in document["results"]]


def _results_of(kind: type[Read]) -> Any:
    """How to read a list of results of this kind."""
    return lambda document: [kind.model_validate(result) for result in document["results"]]


def _threshold(threshold: Threshold) -> dict[str, Any]:
    return {"field": threshold.field, "score": threshold.score}
