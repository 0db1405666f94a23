"""Commands about models that a server keeps: register them from jobs, point aliases to them, fetch their files."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from raydml.cli.output import Json
from raydml.cli.remote import Limit, Local, Url, asking

app = typer.Typer(help="Models of a server (raydml serve): register, promote and fetch them.", no_args_is_help=True)

ModelId = Annotated[str, typer.Argument(metavar="MODEL", help="its id", show_default=False)]
Job = Annotated[str | None, typer.Option("--job", metavar="JOB", help="a job that has succeeded")]
Run = Annotated[str | None, typer.Option("--run", metavar="NAME", help="or: a finished run of the server's folder")]
Name = Annotated[str | None, typer.Option("--name", help="that of the job or the run if none is given")]
OfName = Annotated[str | None, typer.Option("--name", help="those of this name")]
OfAlias = Annotated[str | None, typer.Option("--alias", help="those that this alias points to")]
Alias = Annotated[str, typer.Argument(metavar="ALIAS", help="such as production", show_default=False)]
Expected = Annotated[
    str | None, typer.Option("--expected", metavar="MODEL", help="that it points to now: else nothing is done")
]
File = Annotated[str, typer.Argument(metavar="FILE", help="its path in the model, see get", show_default=False)]
To = Annotated[Path, typer.Option("--to", metavar="PATH", help="a file, or the folder that it comes into")]


@app.command()
def register(
    job: Job = None,
    run: Run = None,
    name: Name = None,
    url: Url = None,
    local: Local = None,
    as_json: Json = False,
) -> None:
    """Keep a copy of the model of a job or of a run."""
    if (job is None) == (run is None):
        raise typer.BadParameter("give one of --job and --run")
    with asking(url, local, as_json) as (client, answer):
        _shown(client.models.register(job, run, name), answer)


@app.command("list")
def list_(
    name: OfName = None,
    alias: OfAlias = None,
    limit: Limit = 50,
    url: Url = None,
    local: Local = None,
    as_json: Json = False,
) -> None:
    """List models, the newest first."""
    with asking(url, local, as_json) as (client, answer):
        found = list(islice(client.models.list(name, alias, min(limit, 1000)), limit))
        table = Table("model", "name", "aliases", "MAP@R", "registered")
        for one in found:
            measured = f"{one.metrics['map_at_r']:.3f}" if "map_at_r" in one.metrics else ""
            table.add_row(one.id, one.name, ", ".join(one.aliases), measured, f"{one.created_at:%Y-%m-%d %H:%M}")
        answer({"models": [one.model_dump(mode="json") for one in found]}, table)


@app.command()
def get(model: ModelId, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Show a model, its measures and its files."""
    with asking(url, local, as_json) as (client, answer):
        _shown(client.models.get(model), answer)


@app.command()
def promote(
    model: ModelId,
    alias: Alias,
    expected: Expected = None,
    url: Url = None,
    local: Local = None,
    as_json: Json = False,
) -> None:
    """Point an alias of the model's name to it."""
    with asking(url, local, as_json) as (client, answer):
        _shown(client.models.promote(model, alias, expected), answer)


@app.command()
def promotions(model: ModelId, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Show how the aliases of the model's name moved, the newest move first."""
    with asking(url, local, as_json) as (client, answer):
        found = client.models.promotions(model)
        table = Table("time", "alias", "model", "before", "by")
        for one in found:
            table.add_row(f"{one.time:%Y-%m-%d %H:%M}", one.alias, one.model, one.before or "", one.caller)
        answer({"promotions": [one.model_dump(mode="json") for one in found]}, table)


@app.command()
def export(model: ModelId, to: To = Path(), url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Fetch all files of a model as one tar archive."""
    with asking(url, local, as_json) as (client, answer):
        path = client.models.export(model, to)
        answer({"model": model, "path": str(path)}, f"model {model} is in {path}")


@app.command()
def download(
    model: ModelId, file: File, to: To = Path(), url: Url = None, local: Local = None, as_json: Json = False
) -> None:
    """Fetch one file of a model, whole or not at all."""
    with asking(url, local, as_json) as (client, answer):
        path = client.models.download(model, file, to)
        answer({"model": model, "path": str(path)}, f"{file} is in {path}")


def _shown(found: Any, answer: Any) -> None:
    from raydml.cli.tables import facts_table

    facts = {"model": f"{found.id}, {found.name}", "from": found.source, "SHA-256": found.sha256}
    facts |= {"dimension": found.dimension, "aliases": ", ".join(found.aliases) or "none"}
    facts |= {name: f"{value:.4f}" for name, value in found.metrics.items()}
    facts |= {file.path: f"{file.size} bytes" for file in found.files}
    answer(found.model_dump(mode="json"), facts_table(facts))
