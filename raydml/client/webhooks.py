"""URLs that a server tells, signed, when jobs change their state; and their documents."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from raydml.client.calls import Call, key, nothing
from raydml.client.documents import Document
from raydml.client.resource import Resource, S, operation


class Webhook(Document):
    """A URL that is told; `secret` signs the messages and is shown when the webhook is made, never again."""

    id: str
    url: str
    created_by: str
    created_at: datetime
    secret: str | None = None


class Delivery(Document):
    """A message and what became of it: waiting, delivered or failed."""

    id: str
    state: str
    tries: int
    status: int | None
    problem: str | None
    created_at: datetime


class Webhooks(Resource[S]):
    """The webhooks of the key's project; for its admins."""

    @operation
    def create(self, url: str, *, request: str | None = None) -> Call[Webhook]:
        """Tell this URL, on a host that the operator allowed; the answer alone has the secret."""
        return Call("POST", "/v1/webhooks", Webhook.model_validate, body={"url": url}, key=key(request))

    @operation
    def list(self) -> Call[Any]:
        """All of them, without their secrets."""
        return Call("GET", "/v1/webhooks", lambda read: [Webhook.model_validate(item) for item in read["items"]])

    @operation
    def delete(self, id: str) -> Call[None]:
        """Send nothing more to it, not even what waits."""
        return Call("DELETE", "/v1/webhooks/{webhook}", nothing, {"webhook": id})

    @operation
    def deliveries(self, id: str, limit: int = 100) -> Call[Any]:
        """Messages to it, the newest first."""
        return Call("GET", "/v1/webhooks/{webhook}/deliveries", _deliveries, {"webhook": id}, {"limit": limit})


def _deliveries(read: Any) -> Any:
    return [Delivery.model_validate(item) for item in read["items"]]
