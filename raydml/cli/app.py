"""The list of commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from raydml.cli import (
    collections,
    comparing,
    data,
    datasets,
    jobs,
    keys,
    machine,
    models,
    queries,
    runs,
    service,
    specs,
    sweeps,
    tuning,
    webhooks,
)

app = typer.Typer(
    name="raydml",
    help="Train embedding models on Ray from one spec, measure them, and search what they learned.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS: dict[str, Callable[..., None]] = {
    "demo": runs.demo,
    "init": specs.init,
    "validate": specs.validate,
    "plan": specs.plan,
    "schema": specs.schema,
    "train": runs.train,
    "tune": tuning.tune,
    "evaluate": runs.evaluate,
    "compare": comparing.compare,
    "events": runs.events,
    "resize": runs.resize,
    "search": queries.search,
    "verify": queries.verify,
    "serve": service.serve,
    "doctor": machine.doctor,
}
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
app.add_typer(data.app, name="data")
app.add_typer(jobs.app, name="jobs")
app.add_typer(sweeps.app, name="sweeps")
app.add_typer(collections.app, name="collections")
app.add_typer(datasets.app, name="datasets")
app.add_typer(models.app, name="models")
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(keys.app, name="keys")


def _show_version(wanted: bool) -> None:
    if wanted:
        from raydml import __version__

        typer.echo(f"raydml {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="print the version")
    ] = False,
) -> None: ...


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `raydml` script; ends the process with the command's exit code."""
    app(arguments)
