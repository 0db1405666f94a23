"""Shadows of a collection: the same points by another model, compared and put in its place; and their documents."""

from __future__ import annotations

from raydml.client.calls import LONG, Call
from raydml.client.documents import Aliases, Document, Threshold
from raydml.client.resource import Resource, S, operation

ONE = "/v1/collections/{name}/shadows/{shadow_name}"


class Filled(Document):
    """A shadow after some more of its points were embedded."""

    embedded: int
    complete: bool
    points: int


class Quality(Document):
    """One collection on the queries of a comparison: right ones, the interval of their share, recall, threshold."""

    right: int
    interval: tuple[float, float]
    recall: float
    threshold: Threshold | None


class Compared(Document):
    """The same points searched in a collection and in its shadow."""

    queries: int
    current: Quality
    shadow: Quality
    better: int
    worse: int
    kept_neighbours: float
    changed_first: float


class Shadow(Resource[S]):
    """One shadow of one collection."""

    names: dict[str, str]

    def __init__(self, sender: S, collection: str, shadow: str) -> None:
        super().__init__(sender)
        self.names = {"name": collection, "shadow_name": shadow}

    @operation
    def fill(self, run: str, field: str, kind: str = "image", limit: int = 1000) -> Call[Filled]:
        """Embed points that it lacks by a run's model, at most `limit`; again until it is complete.

        `field` of payloads has the text (kind `text`), or the path of a picture in the project's folder (`image`).
        """
        body = {"run": run, "field": field, "kind": kind, "limit": limit}
        return Call("PUT", ONE, Filled.model_validate, self.names, body=body, seconds=LONG)

    @operation
    def report(
        self, field: str, k: int = 10, queries: int = 1000, false_accept_rate: float = 0.01, seed: int = 0
    ) -> Call[Compared]:
        """Search both for the same points; `field` of payloads holds the identity."""
        body = {"field": field, "k": k, "queries": queries, "false_accept_rate": false_accept_rate, "seed": seed}
        return Call(
            "POST", f"{ONE}/report", Compared.model_validate, self.names, body=body, repeatable=True, seconds=LONG
        )

    @operation
    def switch(self, alias: str) -> Call[Aliases]:
        """Point an alias of the collection to its shadow; `aliases.roll_back` takes it back."""
        return Call("POST", f"{ONE}/switch", Aliases.model_validate, self.names, body={"alias": alias})
