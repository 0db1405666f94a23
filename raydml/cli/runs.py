"""Commands that work on runs: train, evaluate, demo."""

from __future__ import annotations

from typing import Annotated

import typer

from raydml.cli.output import Json, answering, stderr
from raydml.cli.specs import Overrides, SpecPath

Again = Annotated[bool, typer.Option("--again", help="start anew where a run of this name is finished")]
Address = Annotated[
    str | None, typer.Option(help="an existing Ray cluster; without one, Ray is started here and stopped again")
]
RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="a run's name under RAYDML_HOME, or its folder", show_default=False)
]


def train(
    spec: SpecPath,
    overrides: Overrides = None,
    again: Again = False,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Train, measure and index what a spec describes; the same name resumes an unfinished run."""
    with answering(as_json) as answer:
        from raydml.specfile import load_spec

        loaded = load_spec(spec, overrides or ())  # before torch loads: a wrong spec is told at once

        from raydml import run
        from raydml.cli.progress import progress
        from raydml.cli.tables import run_table

        with progress(stderr()) as listen:
            trained = run.train(loaded, again=again, address=address, listen=listen)
        answer(trained.summary(), run_table(trained.summary()))


def evaluate(name: RunName, as_json: Json = False) -> None:
    """Measure a run's model on its test data once more."""
    with answering(as_json) as answer:
        from raydml import run
        from raydml.cli.tables import metrics_table

        measured = run.evaluate(name)
        answer(measured, metrics_table(measured))


def demo(as_json: Json = False) -> None:
    """Train on drawings of characters with two workers, search them, and draw what was found."""
    with answering(as_json) as answer:
        from raydml.cli.progress import progress
        from raydml.cli.tables import demo_report
        from raydml.demo import run_demo

        with progress(stderr()) as listen:
            done = run_demo(listen)
        answer(done.to_dict(), demo_report(done))
