"""/v1/audit: what the keys of a project did, for its admins."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from api.access import CallerDep
from api.openapi import refusals
from api.service import ServiceDep
from api.times import rfc3339
from raydml.jobs.audit import AuditRow, deeds

router = APIRouter(prefix="/v1/audit", tags=["audit"])


class AuditEntry(BaseModel):
    """One request that changed something, or that the key was not allowed to make."""

    seq: int
    time: str = Field(description="RFC 3339, UTC")
    caller: str = Field(description="the key's id")
    action: str = Field(description="the method", examples=["DELETE"])
    target: str = Field(description="the path", examples=["/v1/collections/faces"])
    status: int = Field(description="how it was answered")
    request_id: str
    address: str = Field(description="where it came from")


class AuditPage(BaseModel):
    """Entries, the newest first."""

    items: list[AuditEntry]
    next_cursor: str | None = Field(description="give it as `cursor` for the next page")


@router.get("", responses=refusals(422, 429))
async def list_audit(
    caller: CallerDep,
    service: ServiceDep,
    cursor: Annotated[
        str | None, Query(pattern=r"^[0-9]{1,18}$", description="`next_cursor` of the page before")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> AuditPage:
    """Who changed what, with which outcome: of the key's own project, the newest first."""

    def read() -> list[AuditEntry]:
        with service.database.reading() as session:
            before = None if cursor is None else int(cursor)
            return [_entry(row) for row in deeds(session, caller.project, before, limit)]

    items = await service.tasks.run(read)
    return AuditPage(items=items, next_cursor=str(items[-1].seq) if len(items) == limit else None)


def _entry(row: AuditRow) -> AuditEntry:
    return AuditEntry(
        seq=row.seq,
        time=rfc3339(row.time),
        caller=row.caller,
        action=row.action,
        target=row.target,
        status=row.status,
        request_id=row.request_id,
        address=row.address,
    )
