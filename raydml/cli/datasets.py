"""Commands about data sets of a server: upload them in parts, see what is in them, remove them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from raydml.cli.output import Json
from raydml.cli.remote import Limit, Local, Url, asking

app = typer.Typer(help="Data sets of a server (raydml serve): upload and check them.", no_args_is_help=True)

File = Annotated[
    Path, typer.Argument(metavar="FILE", help="a zip or tar of class folders, a table, an .npz", show_default=False)
]
DatasetId = Annotated[str, typer.Argument(metavar="DATASET", help="its id", show_default=False)]
Name = Annotated[str | None, typer.Option("--name", help="that of the file if none is given")]
Kind = Annotated[str | None, typer.Option("--kind", help="archive, parquet, csv, jsonl or npz; by the file's name")]
Resume = Annotated[str | None, typer.Option("--resume", metavar="DATASET", help="an upload of it that broke off")]


@app.command()
def upload(
    file: File,
    name: Name = None,
    kind: Kind = None,
    resume: Resume = None,
    url: Url = None,
    local: Local = None,
    as_json: Json = False,
) -> None:
    """Send a file and wait until the server has checked it; exit code 2 where it cannot be used."""
    with asking(url, local, as_json) as (client, answer):
        from raydml.cli.output import stderr

        with stderr().status(f"uploading {file}"):
            sent = client.datasets.upload(file, name, kind, resume=resume)
        with stderr().status(f"{sent.id} is being checked"):
            _shown(client.datasets.wait(sent.id), answer)


@app.command("list")
def list_(limit: Limit = 50, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """List data sets, the newest first."""
    with asking(url, local, as_json) as (client, answer):
        found = list(islice(client.datasets.list(min(limit, 1000)), limit))
        table = Table("data set", "name", "kind", "state", "bytes", "classes", "items")
        for one in found:
            known = ("", "") if one.report is None else (str(one.report.classes), str(one.report.items))
            table.add_row(one.id, one.name, one.kind, one.state, str(one.size), *known)
        answer({"datasets": [one.model_dump(mode="json") for one in found]}, table)


@app.command()
def get(dataset: DatasetId, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Show a data set, and what was found in it."""
    with asking(url, local, as_json) as (client, answer):
        _shown(client.datasets.get(dataset), answer)


@app.command()
def delete(dataset: DatasetId, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Remove a data set; refused while a job uses it."""
    with asking(url, local, as_json) as (client, answer):
        client.datasets.delete(dataset)
        answer({"deleted": dataset}, f"data set {dataset} is removed")


def _shown(found: Any, answer: Any) -> None:
    from raydml.cli.tables import facts_table

    facts = {"data set": f"{found.id}, {found.name}", "state": found.state, "use in a spec": found.reference}
    if found.problem:
        facts["problem"] = found.problem
    if found.report:
        facts |= {"classes": found.report.classes, "items": found.report.items, "bad items": found.report.bad_items}
    answer(found.model_dump(mode="json"), facts_table(facts))
