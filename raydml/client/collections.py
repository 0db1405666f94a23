"""Collections of a server: `client.collections["faces"].search(...)`, as `raydml.Collection` does it on a disk."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from raydml.client import bodies
from raydml.client.calls import LONG, Call, Pages, given, key, nothing
from raydml.client.documents import Changed, Compacted, Description, Id, Payload, Point, Stats, Value
from raydml.client.queries import ONE, Filter, Queries
from raydml.client.resource import Resource, S, iterating, operation
from raydml.client.shadows import Shadow
from raydml.client.snapshots import Snapshots


class Collections(Resource[S]):
    """All collections of the server."""

    def __getitem__(self, name: str) -> Collection[S]:
        """The collection, or the one that an alias of this name points to; nothing is asked yet."""
        return Collection(self.sender, name)

    @operation
    def create(
        self,
        name: str,
        dimension: int | None = None,
        metric: str | None = None,
        run: str | None = None,
        model_digest: str | None = None,
    ) -> Call[Description]:
        """Make a collection, of a dimension or of a run's model; Conflict where it is there and differs."""
        body = given(dimension=dimension, metric=metric, run=run, model_digest=model_digest)
        return Call("PUT", ONE, Description.model_validate, {"name": name}, body=body)

    @operation
    def add(
        self,
        name: str,
        dimension: int | None = None,
        metric: str | None = None,
        run: str | None = None,
        model_digest: str | None = None,
    ) -> Call[Description]:
        """Make a collection that is new; Conflict where there is one of this name."""
        body = {"name": name, **given(dimension=dimension, metric=metric, run=run, model_digest=model_digest)}
        return Call("POST", "/v1/collections", Description.model_validate, body=body)

    @iterating
    def list(self, page_size: int = 100) -> Pages[str]:
        """Names of all collections, in order."""

        def page(cursor: str | None) -> Call[tuple[Any, str | None]]:
            query = {"after": cursor, "limit": page_size}
            return Call("GET", "/v1/collections", lambda read: (read["collections"], read["next"]), query=query)

        return Pages(page)

    @operation
    def get(self, name: str) -> Call[Description]:
        """Describe a collection, or the one that an alias points to."""
        return Call("GET", ONE, Description.model_validate, {"name": name})

    @operation
    def delete(self, name: str) -> Call[None]:
        """Remove a collection with everything in it; Conflict while an alias points to it."""
        return Call("DELETE", ONE, nothing, {"name": name})


class Collection(Queries[S]):
    """One collection: its points; what is asked of them is in `Queries`.

    `request` names a change: sent again under the same name it is done once. Without one, each call has a name of its
    own, so that it may be sent again when an answer is lost. `min_lsn`, which a change answered, is seen by a read.
    """

    @property
    def snapshots(self) -> Snapshots[S]:
        """Copies of the collection."""
        return Snapshots(self.sender, self.name)

    def shadow(self, name: str) -> Shadow[S]:
        """The collection of this name as a shadow of this one; nothing is asked yet."""
        return Shadow(self.sender, self.name, name)

    @operation
    def compact(self) -> Call[Compacted]:
        """Merge segments and drop dead rows; others read and write meanwhile."""
        return Call("POST", f"{ONE}/compact", Compacted.model_validate, self.names, repeatable=True, seconds=LONG)

    @operation
    def describe(self) -> Call[Description]:
        """Name, dimension, metric, model and number of points."""
        return Call("GET", ONE, Description.model_validate, self.names)

    @operation
    def count(self) -> Call[int]:
        """The number of points."""
        return Call("GET", ONE, lambda read: Description.model_validate(read).points, self.names)

    @operation
    def upsert(
        self,
        ids: Iterable[Id],
        vectors: Any,
        payloads: Iterable[Payload | None] | None = None,
        model_digest: str | None = None,
        *,
        request: str | None = None,
    ) -> Call[int]:
        """Insert points, or replace those whose id is there, all of them or none: the lsn.

        `vectors` (n, dimension): an array travels as float32 bytes, lists as they are.
        """
        ids = list(ids)
        body = {
            "ids": ids,
            "vectors": bodies.vectors(vectors, len(ids)),
            **given(payloads=None if payloads is None else list(payloads), model_digest=model_digest),
        }
        return Call("POST", f"{ONE}/points", lambda read: int(read["lsn"]), self.names, body=body, key=key(request))

    @operation
    def delete(
        self, ids: Iterable[Id] | None = None, *, filter: Filter | None = None, request: str | None = None
    ) -> Call[Changed]:
        """Remove points by id, or all that pass a filter; unknown ids are passed over."""
        body = given(ids=None if ids is None else list(ids), filter=filter)
        return Call("POST", f"{ONE}/points:delete", Changed.model_validate, self.names, body=body, key=key(request))

    @operation
    def set_payload(
        self, ids: Iterable[Id], payload: Payload, *, merge: bool = True, request: str | None = None
    ) -> Call[Changed]:
        """Add fields to points' payloads, or replace these with `merge=False`; vectors stay."""
        body = {"ids": list(ids), "payload": payload, "merge": merge}
        return Call("POST", f"{ONE}/points:payload", Changed.model_validate, self.names, body=body, key=key(request))

    @operation
    def get(self, ids: Iterable[Id], *, with_vectors: bool = False, min_lsn: int | None = None) -> Call[list[Point]]:
        """Points by id, in this order; RequestRefused names those that are not there."""
        body = {"ids": list(ids), "with_vectors": with_vectors, **given(min_lsn=min_lsn)}
        headers = bodies.BINARY if with_vectors else {}
        return Call("POST", f"{ONE}/points:get", _points, self.names, body=body, headers=headers, repeatable=True)

    @iterating
    def scroll(
        self,
        filter: Filter | None = None,
        *,
        with_vectors: bool = False,
        min_lsn: int | None = None,
        page_size: int = 100,
    ) -> Pages[Point]:
        """All points that pass the filter, in order of insertion."""
        said = {"limit": page_size, "filter": filter, "with_vectors": with_vectors, "min_lsn": min_lsn}
        headers = bodies.BINARY if with_vectors else {}

        def page(cursor: str | None) -> Call[tuple[list[Point], str | None]]:
            query = {**said, "after": cursor}
            return Call(
                "GET", f"{ONE}/points", lambda read: (_points(read), read["next"]), self.names, query, headers=headers
            )

        return Pages(page)

    @operation
    def index_payload(self, field: str) -> Call[None]:
        """Keep an index of a field of payloads: filters and facets of it need not read payloads."""
        return Call("PUT", f"{ONE}/indexes/{{field}}", nothing, {**self.names, "field": field})

    @operation
    def facet(self, field: str, limit: int = 100, *, min_lsn: int | None = None) -> Call[list[Value]]:
        """The values of an indexed field with their number of points, the most frequent first."""
        names, query = {**self.names, "field": field}, {"limit": limit, "min_lsn": min_lsn}
        return Call("GET", f"{ONE}/facets/{{field}}", _values, names, query)

    @operation
    def stats(self) -> Call[Stats]:
        """What the collection consists of, and how well its approximate indexes do."""
        return Call("GET", f"{ONE}/stats", Stats.model_validate, self.names)


def _points(read: Any) -> list[Point]:
    return [Point.model_validate(point) for point in read["points"]]


def _values(read: Any) -> list[Value]:
    return [Value.model_validate(value) for value in read["values"]]
