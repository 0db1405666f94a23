"""Commands that work on runs: train, evaluate, events, resize, demo."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.text import Text

from raydml.cli.comparing import MetricOption
from raydml.cli.output import Json, answering, stderr
from raydml.cli.specs import Overrides, SpecPath

Again = Annotated[bool, typer.Option("--again", help="start anew where a run of this name is finished")]
Address = Annotated[
    str | None, typer.Option(help="an existing Ray cluster; without one, Ray is started here and stopped again")
]
RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="a run's name under RAYDML_HOME, or its folder", show_default=False)
]
Workers = Annotated[int, typer.Argument(metavar="N", min=1, help="workers that it should have", show_default=False)]
Follow = Annotated[bool, typer.Option("--follow", help="go on with a line for each new one until the run ends")]
SECONDS_BETWEEN_LOOKS = 0.5


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


def evaluate(name: RunName, metric: MetricOption = None, as_json: Json = False) -> None:
    """Measure a run's model on its test data once more."""
    with answering(as_json) as answer:
        from raydml import run
        from raydml.cli.tables import metrics_table

        measured = run.evaluate(name, metric=metric)
        answer(measured, metrics_table(measured))


def events(name: RunName, follow: Follow = False, as_json: Json = False) -> None:
    """Show when workers came, went and died, and what that cost."""
    with answering(as_json) as answer:
        from raydml import runs
        from raydml.cli.tables import events_table
        from raydml.training.history import words

        found = runs.find_run(name)
        shown = found.events
        if not follow:
            answer({"run": found.name, "events": shown}, events_table(found.name, shown))
            return
        told = 0
        while True:
            driven = runs.driven(found.folder)  # before the look, so that the last event is seen
            for event in found.events[told:]:
                answer(event, Text(words(event)))
                told += 1
            if not driven:
                return
            time.sleep(SECONDS_BETWEEN_LOOKS)


def resize(name: RunName, workers: Workers, as_json: Json = False) -> None:
    """Ask a run that is training for another number of workers; the trained bits stay the same."""
    with answering(as_json) as answer:
        from raydml import runs

        asked = runs.resize(name, workers)
        now = f"{asked['before'] or 'none'} now"
        answer(asked, f"run {asked['run']}: asked for {workers} workers, {now}; raydml events {name} tells when")


def demo(as_json: Json = False) -> None:
    """Train on drawings of characters with two workers, search them, and draw what was found."""
    with answering(as_json) as answer:
        from raydml.cli.progress import progress
        from raydml.cli.tables import demo_report
        from raydml.demo import run_demo

        with progress(stderr()) as listen:
            done = run_demo(listen)
        answer(done.to_dict(), demo_report(done))
