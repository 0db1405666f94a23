"""/v1/keys: API keys of the caller's project, for its admins: made and shown once, listed, revoked."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response

from api import bodies
from api.access import CallerDep
from api.key_documents import KEY_ID, CreateKeyRequest, Keys, NewKey
from api.key_documents import ApiKey as KeyDocument
from api.openapi import refusals, takes
from api.service import ServiceDep
from api.times import maybe, rfc3339
from raydml.jobs import keys
from raydml.jobs.ids import milliseconds

router = APIRouter(prefix="/v1/keys", tags=["keys"])
KeyId = Annotated[str, Path(alias="key", pattern=KEY_ID, description="a key's id")]


@router.post(
    "",
    status_code=201,
    response_model=NewKey,
    responses=refusals(400, 415, 422, 429),
    openapi_extra=takes(CreateKeyRequest),
)
async def create_key(caller: CallerDep, service: ServiceDep, request: Request) -> Response:
    """Make a key of the caller's project. The answer alone has the token: it is kept nowhere, so that a request whose
    answer was lost makes a key that nobody can use, to be revoked."""
    body = await bodies.read(request, CreateKeyRequest)

    def make() -> dict[str, Any]:
        with service.database.transaction() as session:
            made, token = keys.make_key(session, body.scopes, caller.project, body.name, body.days)
            return {**_shape(made), "token": token}

    made = await service.tasks.run(make)
    answer = bodies.answer(request, made, 201)
    answer.headers["Location"] = f"/v1/keys/{made['id']}"
    answer.headers["Cache-Control"] = "no-store"
    return answer


@router.get("", responses=refusals(422, 429))
async def list_keys(caller: CallerDep, service: ServiceDep) -> Keys:
    """Those of the project, revoked and expired ones among them; never the tokens."""

    def read() -> list[KeyDocument]:
        with service.database.reading() as session:
            return [KeyDocument(**_shape(row)) for row in keys.keys(session, caller.project)]

    return Keys(items=await service.tasks.run(read))


@router.get("/{key}", responses=refusals(404, 422, 429))
async def get_key(key: KeyId, caller: CallerDep, service: ServiceDep) -> KeyDocument:
    """One of them."""

    def read() -> KeyDocument:
        with service.database.reading() as session:
            return KeyDocument(**_shape(keys.find_key(session, key, caller.project)))

    return await service.tasks.run(read)


@router.delete("/{key}", responses=refusals(404, 422, 429))
async def revoke_key(key: KeyId, caller: CallerDep, service: ServiceDep) -> KeyDocument:
    """Refuse it from now on; processes that know it do so within a second. Its record stays, for the audit log."""

    def revoke() -> KeyDocument:
        with service.database.transaction() as session:
            return KeyDocument(**_shape(keys.revoke_key(session, key, caller.project)))

    return await service.tasks.run(revoke)


def _shape(row: keys.ApiKey) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "prefix": row.prefix,
        "scopes": row.scopes,
        "state": row.state(milliseconds()),
        "created_at": rfc3339(row.created_at),
        "expires_at": maybe(row.expires_at),
        "used_at": maybe(row.used_at),
    }
