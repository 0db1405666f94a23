"""Whose jobs a request is about, and the name that their history gives to who asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from raydml.jobs.ids import DEFAULT_PROJECT


@dataclass(frozen=True)
class Owner:
    """A project's id, and who asks."""

    project: str = DEFAULT_PROJECT
    name: str = "local"


async def owner_of(request: Request) -> Owner:
    """That of the caller whom the guard found; everybody on this machine where there is no guard."""
    caller = request.scope.get("caller")
    return Owner() if caller is None else Owner(caller.project, caller.name)


OwnerDep = Annotated[Owner, Depends(owner_of)]
