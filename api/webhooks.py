"""/v1/webhooks: URLs that are told, signed, when the project's jobs change their state."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response

from api import bodies
from api.access import CallerDep
from api.job_desk import DeskDep
from api.once import Done, Key
from api.openapi import refusals, takes
from api.service import ServiceDep
from api.times import rfc3339
from api.webhook_documents import CreateWebhookRequest, Deliveries, Delivery, NewWebhook, Webhook, Webhooks
from raydml.jobs.webhooks import DeliveryRow, WebhookRow, deliveries, find_webhook, new_webhook, webhooks

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])
WebhookId = Annotated[str, Path(alias="webhook", pattern=r"^whk_[0-9a-hjkmnp-tv-z]{26}$", description="its id")]


@router.post(
    "",
    status_code=201,
    response_model=NewWebhook,
    responses=refusals(400, 409, 415, 422, 429),
    openapi_extra=takes(CreateWebhookRequest),
)
async def create_webhook(
    caller: CallerDep, desk: DeskDep, service: ServiceDep, request: Request, key: Key = None
) -> Response:
    """Tell this URL when a job of the project changes its state; messages are signed with the secret in the answer."""
    body = await bodies.read(request, CreateWebhookRequest)

    async def prepare() -> None: ...

    def act(_: None) -> Done:
        with service.database.transaction() as session:
            row = new_webhook(session, caller.project, body.url, service.settings.webhook_targets, caller.name)
        return Done({**_shape(row), "secret": row.secret}, 201, {"Location": f"/v1/webhooks/{row.id}"})

    return await desk.once.do(request, caller, key, prepare, act)


@router.get("", responses=refusals(422, 429))
async def list_webhooks(caller: CallerDep, service: ServiceDep) -> Webhooks:
    """Those of the project, without their secrets."""

    def read() -> list[dict[str, Any]]:
        with service.database.reading() as session:
            return [_shape(row) for row in webhooks(session, caller.project)]

    return Webhooks(items=[Webhook(**each) for each in await service.tasks.run(read)])


@router.delete("/{webhook}", status_code=204, responses=refusals(404, 422, 429))
async def delete_webhook(webhook: WebhookId, caller: CallerDep, service: ServiceDep) -> None:
    """Send nothing more to it, not even what waits."""

    def remove() -> None:
        with service.database.transaction() as session:
            session.delete(find_webhook(session, webhook, caller.project))

    await service.tasks.run(remove)


@router.get("/{webhook}/deliveries", responses=refusals(404, 422, 429))
async def list_deliveries(
    webhook: WebhookId,
    caller: CallerDep,
    service: ServiceDep,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Deliveries:
    """Messages to it, the newest first: delivered, failed after ten tries, or waiting for the next one."""

    def read() -> list[Delivery]:
        with service.database.reading() as session:
            return [_delivery(row) for row in deliveries(session, webhook, caller.project, limit)]

    return Deliveries(items=await service.tasks.run(read))


def _shape(row: WebhookRow) -> dict[str, Any]:
    return {"id": row.id, "url": row.url, "created_by": row.created_by, "created_at": rfc3339(row.created_at)}


def _delivery(row: DeliveryRow) -> Delivery:
    return Delivery(
        id=row.id,
        state=row.state,
        tries=row.tries,
        status=row.status,
        problem=row.problem,
        created_at=rfc3339(row.created_at),
    )
