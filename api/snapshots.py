"""/v1/collections/{name}/snapshots: copies of a collection, which outlive it, and new collections of them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response

from api import bodies
from api.answers import Description, Snapshots
from api.collections import describe
from api.documents import RestoreRequest
from api.openapi import refusals, takes
from api.service import CollectionDep, ServiceDep, StoreDep
from api.store import NAME
from raydml.files import remove_folder
from raydml.search import DATABASE

router = APIRouter(prefix="/v1/collections/{name}/snapshots", tags=["snapshots"])
Named = Annotated[str, Path(pattern=NAME)]


@router.get("", responses=refusals(422, 429))
async def list_snapshots(name: Named, service: ServiceDep, store: StoreDep) -> Snapshots:
    """Names of the snapshots of a collection, which may be gone itself."""
    folder = store.snapshots / name
    found = await service.tasks.run(lambda: sorted(path.parent.name for path in folder.glob(f"*/{DATABASE}")))
    return Snapshots(snapshots=found)


@router.put("/{snapshot}", status_code=201, responses=refusals(404, 409, 422, 429, 507))
async def make_snapshot(snapshot: Named, collection: CollectionDep, service: ServiceDep, store: StoreDep) -> None:
    """Copy the collection as it is now; whole when this answers, while writers go on."""
    await service.analyses.run(lambda: store.snapshot(collection, snapshot))


@router.delete("/{snapshot}", status_code=204, responses=refusals(404, 422, 429))
async def delete_snapshot(name: Named, snapshot: Named, service: ServiceDep, store: StoreDep) -> None:
    """Remove a snapshot."""
    await service.tasks.run(lambda: remove_folder(store.snapshot_folder(name, snapshot)))


@router.post(
    "/{snapshot}/restore",
    status_code=201,
    response_model=Description,
    responses=refusals(400, 404, 409, 415, 422, 429, 507),
    openapi_extra=takes(RestoreRequest),
)
async def restore_snapshot(
    name: Named, snapshot: Named, service: ServiceDep, store: StoreDep, request: Request
) -> Response:
    """Make a new collection of a snapshot, every byte of it checked."""
    body = await bodies.read(request, RestoreRequest)
    await service.analyses.run(lambda: store.restore(name, snapshot, body.to))
    described = await describe(service, await service.collection(store, body.to))
    return bodies.answer(request, described.model_dump(), 201)
