"""Is the process alive, and can it take requests now?"""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from api.openapi import refusals
from api.problems import Problem
from api.readiness import Check, examine
from api.service import ServiceDep

router = APIRouter(tags=["health"])


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


class CheckDocument(BaseModel):
    """One thing that the server leans on."""

    name: str = Field(examples=["database"])
    ok: bool
    required: bool = Field(description="whether no request can be served without it")
    detail: str


class Ready(BaseModel):
    """The process can take requests."""

    status: Literal["ready"] = "ready"
    checks: list[CheckDocument] | None = Field(None, description="with ?verbose; jobs wait where one is not ok")


@router.get("/livez")
async def livez() -> Alive:
    """Whether the process answers at all: restart it if not."""
    return Alive()


@router.get("/readyz", response_model_exclude_none=True, responses=refusals(422))
async def readyz(
    service: ServiceDep,
    verbose: Annotated[str | None, Query(description="tell of each check; also of Ray and the supervisor")] = None,
) -> Ready:
    """Whether requests can be served: 503 while database, storage or disk are not well."""
    checks = await asyncio.to_thread(examine, service.settings, service.database, verbose is not None)
    missing = [check for check in checks if check.required and not check.ok]
    if missing:
        told = missing if verbose is None else checks
        raise Problem(
            503,
            "not-ready",
            "; ".join(f"{check.name}: {check.detail}" for check in missing),
            headers={"Retry-After": "1"},
            errors=[{"path": check.name, "message": _words(check)} for check in told],
        )
    return Ready(checks=None if verbose is None else [CheckDocument.model_validate(vars(check)) for check in checks])


def _words(check: Check) -> str:
    return check.detail if not check.ok else f"ok: {check.detail}"
