"""/v1/aliases: names that point to collections, switched all at once or not at all."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api import bodies
from api.answers import AliasesAnswer
from api.documents import RollBackRequest, SwitchRequest
from api.openapi import refusals, takes
from api.problems import Problem
from api.service import ServiceDep, StoreDep
from raydml.errors import CollectionError
from raydml.search.aliases import Generation

router = APIRouter(prefix="/v1", tags=["aliases"])
SWITCHING = refusals(400, 409, 415, 422, 429)


@router.get("/aliases", responses=refusals(429))
async def get_aliases(service: ServiceDep, store: StoreDep) -> AliasesAnswer:
    """All aliases."""
    return answer_of(await service.tasks.run(store.aliases.current))


@router.post("/aliases:switch", response_model=AliasesAnswer, responses=SWITCHING, openapi_extra=takes(SwitchRequest))
async def switch_aliases(service: ServiceDep, store: StoreDep, request: Request) -> Response:
    """Point aliases to other collections, all at the same moment, for every process."""
    body = await bodies.read(request, SwitchRequest)

    def switch() -> Generation:
        store.folder.mkdir(parents=True, exist_ok=True)
        return store.aliases.switch(body.changes, body.expected)

    return bodies.answer(request, answer_of(await service.tasks.run(lambda: checked(switch))).model_dump())


@router.post(
    "/aliases:rollback", response_model=AliasesAnswer, responses=SWITCHING, openapi_extra=takes(RollBackRequest)
)
async def roll_back_aliases(service: ServiceDep, store: StoreDep, request: Request) -> Response:
    """Make the aliases what they were before the newest switch."""
    body = await bodies.read(request, RollBackRequest)
    generation = await service.tasks.run(lambda: checked(lambda: store.aliases.roll_back(body.expected)))
    return bodies.answer(request, answer_of(generation).model_dump())


def answer_of(generation: Generation) -> AliasesAnswer:
    return AliasesAnswer(generation=generation.number, aliases=dict(generation.collections))


def checked(change: Callable[[], Generation]) -> Generation:
    """Raises Problem 409 where another switch came since the generation that was expected."""
    try:
        return change()
    except CollectionError as error:
        if "generation" in error.data:
            raise Problem(409, "aliases-changed", error.message) from error
        raise
