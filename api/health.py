"""Is the process alive, and can it take requests now?"""

from __future__ import annotations

import os
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from api.problems import Problem
from api.service import ServiceDep

router = APIRouter(tags=["health"])


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """The process can take requests."""

    status: Literal["ready"] = "ready"


@router.get("/livez")
async def livez() -> Alive:
    """Whether the process answers at all: restart it if not."""
    return Alive()


@router.get("/readyz")
async def readyz(service: ServiceDep) -> Ready:
    """Whether requests can be served: 503 while the folder of collections cannot be read and written."""
    home = service.settings.home
    if not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        raise Problem(503, "not-ready", "the server's folder (RAYDML_HOME) cannot be read and written")
    return Ready()
