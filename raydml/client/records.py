"""What a server says of itself: schemas of its documents, and the audit log."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from raydml.client.calls import Call, Pages
from raydml.client.documents import Document
from raydml.client.resource import Resource, S, iterating, operation


class AuditEntry(Document):
    """A request that changed something, or that its key was not allowed to make."""

    seq: int
    time: datetime
    caller: str
    action: str
    target: str
    status: int
    request_id: str
    address: str


class Audit(Resource[S]):
    """What the keys of a project did; for its admins."""

    @iterating
    def list(self, page_size: int = 100) -> Pages[AuditEntry]:
        """Entries, the newest first."""

        def page(cursor: Any) -> Call[tuple[Any, Any]]:
            return Call("GET", "/v1/audit", _entries, query={"limit": page_size, "cursor": cursor})

        return Pages(page)


class Schemas(Resource[S]):
    """JSON Schemas by name."""

    @operation
    def list(self) -> Call[Any]:
        """Their names; `job` is that of a spec."""
        return Call("GET", "/v1/schemas", lambda read: read["schemas"])

    @operation
    def get(self, name: str) -> Call[dict[str, Any]]:
        """One of them."""
        return Call("GET", "/v1/schemas/{schema}", dict, {"schema": name})


def _entries(read: Any) -> tuple[Any, Any]:
    return [AuditEntry.model_validate(item) for item in read["items"]], read["next_cursor"]
