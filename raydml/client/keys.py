"""API keys of a project: made and shown once, listed, revoked; for its admins."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from raydml.client.calls import Call, given
from raydml.client.documents import Document
from raydml.client.resource import Resource, S, operation

ONE = "/v1/keys/{key}"


class ApiKey(Document):
    """A key. Its `token` is in the answer to `create` alone; `state` is live, revoked or expired."""

    id: str
    name: str
    prefix: str
    scopes: list[str]
    state: str
    created_at: datetime
    expires_at: datetime | None
    used_at: datetime | None
    token: str | None = None


class Keys(Resource[S]):
    """The keys of the caller's project."""

    @operation
    def create(self, scopes: Iterable[str], name: str = "", days: float | None = None) -> Call[ApiKey]:
        """Make one, for so many days or for ever. Never sent twice: a token whose answer was lost is lost."""
        body = {"scopes": list(scopes), "name": name, **given(days=days)}
        return Call("POST", "/v1/keys", ApiKey.model_validate, body=body)

    @operation
    def list(self) -> Call[Any]:
        """All of them, the oldest first, without their tokens."""
        return Call("GET", "/v1/keys", lambda read: [ApiKey.model_validate(item) for item in read["items"]])

    @operation
    def get(self, id: str) -> Call[ApiKey]:
        """One of them."""
        return Call("GET", ONE, ApiKey.model_validate, {"key": id})

    @operation
    def revoke(self, id: str) -> Call[ApiKey]:
        """Refuse it from now on."""
        return Call("DELETE", ONE, ApiKey.model_validate, {"key": id})
