"""What requests about webhooks may say, and what answers say, as documents."""

from __future__ import annotations

from pydantic import BaseModel, Field, StrictStr

from api.documents import Document
from api.job_documents import Time


class CreateWebhookRequest(Document):
    """Where to send messages, on a host that the server's operator allowed."""

    url: StrictStr = Field(min_length=1, max_length=2000, examples=["https://ci.example/raydml"])


class Webhook(BaseModel):
    """A URL that is told of changes of state."""

    id: str
    url: str
    created_by: str
    created_at: Time


class NewWebhook(Webhook):
    """A webhook, with the secret that is shown this once."""

    secret: str = Field(
        description="HMAC-SHA256 with its base64 part over `id.timestamp.body` is the header webhook-signature "
        "(standardwebhooks.com)"
    )


class Webhooks(BaseModel):
    """The webhooks of a project."""

    items: list[Webhook]


class Delivery(BaseModel):
    """A message and what became of it."""

    id: str = Field(description="the header webhook-id: the same each time that it is sent")
    state: str = Field(description="waiting, delivered or failed")
    tries: int
    status: int | None = Field(description="the receiver's last answer")
    problem: str | None = Field(description="why there was none")
    created_at: Time


class Deliveries(BaseModel):
    """Messages to a webhook, the newest first."""

    items: list[Delivery]


BODIES = (CreateWebhookRequest,)
