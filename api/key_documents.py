"""What requests about API keys may say, and what answers say, as documents."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, StrictStr

from api.documents import Document
from api.job_documents import Time
from raydml.jobs.callers import Scope

KEY_ID = r"^key_[0-9a-hjkmnp-tv-z]{26}$"


class CreateKeyRequest(Document):
    """What a key may do, and for how long."""

    scopes: Annotated[list[Scope], Field(min_length=1, max_length=20, examples=[["jobs:read", "search:read"]])]
    name: Annotated[StrictStr, Field(max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$")] = ""
    days: Annotated[
        float | None, Field(gt=0, le=36_500, allow_inf_nan=False, description="valid for so long; for ever without it")
    ] = None


class ApiKey(BaseModel):
    """A key of the project; the token itself is nowhere but with its owner."""

    id: str
    name: str
    prefix: str = Field(description="what its token begins with, behind `raydml_`")
    scopes: list[Scope]
    state: Literal["live", "revoked", "expired"]
    created_at: Time
    expires_at: Time | None
    used_at: Time | None = Field(description="to the minute")


class NewKey(ApiKey):
    """A key that was just made, with the token that is shown this once."""

    token: str = Field(description="send it as `Authorization: Bearer ...`")


class Keys(BaseModel):
    """The keys of a project, the oldest first."""

    items: list[ApiKey]


BODIES = (CreateKeyRequest,)
