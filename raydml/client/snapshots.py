"""Snapshots of a collection, and aliases: names that point to collections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raydml.client.calls import LONG, Call, given, nothing
from raydml.client.documents import Aliases, Description
from raydml.client.resource import Resource, S, operation

ALL = "/v1/collections/{name}/snapshots"
ONE = "/v1/collections/{name}/snapshots/{snapshot}"


class Snapshots(Resource[S]):
    """Copies of one collection, which outlive it."""

    collection: str

    def __init__(self, sender: S, collection: str) -> None:
        super().__init__(sender)
        self.collection = collection

    @operation
    def list(self) -> Call[Any]:
        """Names of the snapshots, in order."""
        return Call("GET", ALL, lambda read: read["snapshots"], {"name": self.collection})

    @operation
    def create(self, snapshot: str) -> Call[None]:
        """Copy the collection as it is now, while writers go on; Conflict where the name is taken."""
        return Call("PUT", ONE, nothing, self._names(snapshot), repeatable=False, seconds=LONG)

    @operation
    def delete(self, snapshot: str) -> Call[None]:
        """Remove a snapshot."""
        return Call("DELETE", ONE, nothing, self._names(snapshot))

    @operation
    def restore(self, snapshot: str, to: str) -> Call[Description]:
        """Make a new collection of a snapshot, every byte of it checked."""
        return Call(
            "POST", f"{ONE}/restore", Description.model_validate, self._names(snapshot), body={"to": to}, seconds=LONG
        )

    def _names(self, snapshot: str) -> dict[str, str]:
        return {"name": self.collection, "snapshot": snapshot}


class AliasTable(Resource[S]):
    """All aliases of the server, which switch together or not at all."""

    @operation
    def get(self) -> Call[Aliases]:
        """All aliases, and the number of their generation."""
        return Call("GET", "/v1/aliases", Aliases.model_validate)

    @operation
    def switch(self, changes: Mapping[str, str | None], expected: int | None = None) -> Call[Aliases]:
        """Point aliases to collections, or None to remove them; Conflict where the generation is not `expected`."""
        body = {"changes": dict(changes), **given(expected=expected)}
        return Call("POST", "/v1/aliases:switch", Aliases.model_validate, body=body)

    @operation
    def roll_back(self, expected: int | None = None) -> Call[Aliases]:
        """Make the aliases what they were before the newest switch."""
        return Call("POST", "/v1/aliases:rollback", Aliases.model_validate, body=given(expected=expected))
