"""Commands about the URLs that a server tells when jobs change their state."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from raydml.cli.output import Json
from raydml.cli.remote import Limit, Local, Url, asking

app = typer.Typer(help="URLs that a server tells, signed, of its jobs; for admins.", no_args_is_help=True)

Target = Annotated[
    str, typer.Argument(metavar="TARGET", help="https://..., on a host that the operator allowed", show_default=False)
]
WebhookId = Annotated[str, typer.Argument(metavar="WEBHOOK", help="its id", show_default=False)]


@app.command()
def create(target: Target, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Tell this URL from now on; the secret that signs the messages is shown once."""
    with asking(url, local, as_json) as (client, answer):
        made = client.webhooks.create(target)
        shown = f"{made.id} tells {made.url}\nsecret, shown this once: {made.secret}"
        answer(made.model_dump(mode="json"), shown)


@app.command("list")
def list_(url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """List webhooks, without their secrets."""
    with asking(url, local, as_json) as (client, answer):
        found = client.webhooks.list()
        table = Table("webhook", "url", "made by", "made")
        for one in found:
            table.add_row(one.id, one.url, one.created_by, f"{one.created_at:%Y-%m-%d %H:%M}")
        answer({"webhooks": [one.model_dump(mode="json", exclude={"secret"}) for one in found]}, table)


@app.command()
def delete(webhook: WebhookId, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Send nothing more to it, not even what waits."""
    with asking(url, local, as_json) as (client, answer):
        client.webhooks.delete(webhook)
        answer({"deleted": webhook}, f"webhook {webhook} is removed")


@app.command()
def deliveries(
    webhook: WebhookId, limit: Limit = 50, url: Url = None, local: Local = None, as_json: Json = False
) -> None:
    """Show messages to it, the newest first, and what became of them."""
    with asking(url, local, as_json) as (client, answer):
        found = client.webhooks.deliveries(webhook, min(limit, 1000))
        table = Table("message", "state", "tries", "status", "problem", "time")
        for one in found:
            told = ("" if one.status is None else str(one.status), one.problem or "")
            table.add_row(one.id, one.state, str(one.tries), *told, f"{one.created_at:%Y-%m-%d %H:%M}")
        answer({"deliveries": [one.model_dump(mode="json") for one in found]}, table)
