"""Commands about specs that start nothing: init, validate, plan, schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raydml.cli.output import WRONG_INPUT, Json, answering, stderr

SpecPath = Annotated[Path, typer.Argument(metavar="SPEC", help="a YAML or JSON file", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="change one option, e.g. loss.margin=0.3")
]
DataPath = Annotated[
    Path | None,
    typer.Argument(
        metavar="[PATH]", help="class folders, a manifest or arrays; without one, built-in glyphs", show_default=False
    ),
]
Measure = Annotated[
    bool, typer.Option("--measure", help="try each strategy for a few steps on this machine, for strategy: auto")
]
Steps = Annotated[int, typer.Option("--steps", min=2, max=1000, help="steps of each trial that are counted")]
Rounding = Annotated[bool, typer.Option("--rounding", help="also try what rounds more: bf16, compressed gradients")]
Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="where the spec goes")]


def validate(spec: SpecPath, overrides: Overrides = None, as_json: Json = False) -> None:
    """Check a spec: every mistake at once, with its line and path."""
    with answering(as_json) as answer:
        from raydml.specfile import load_spec

        loaded = load_spec(spec, overrides or ())
        if loaded.tune is not None:
            from raydml.tuning.trials import check_space

            check_space(loaded)
        document = {"valid": True, "name": loaded.name, "exactness": loaded.exactness, "digest": loaded.digest()}
        answer(document, f"{spec}: valid, run {loaded.name}, {loaded.exactness}")


def init(path: DataPath = None, out: Out = Path("spec.yaml"), as_json: Json = False) -> None:
    """Look at your data and write a spec to start from, with the reason beside each number."""
    with answering(as_json) as answer:
        from dataclasses import asdict

        from raydml.runs import home
        from raydml.starter import data_of, write_spec

        written = write_spec(data_of(path), out, home())
        shown = f"{out}: a spec for {written.kind} data; read it, then raydml plan {out}"
        answer({**asdict(written), "path": str(out)}, shown)


def plan(
    spec: SpecPath,
    overrides: Overrides = None,
    measure: Measure = False,
    steps: Steps = 5,
    rounding: Rounding = False,
    as_json: Json = False,
) -> None:
    """Show what a spec would do with its data, before anything starts; --measure tries its strategies here."""
    with answering(as_json) as answer:
        from raydml.specfile import load_spec

        loaded = load_spec(spec, overrides or ())

        from raydml.cli.tables import plan_table
        from raydml.data import open_dataset
        from raydml.plan import plan as make_plan
        from raydml.runs import home

        dataset = open_dataset(loaded.data, home())
        if measure:
            from raydml.measuring import measure as measured
            from raydml.spec import MeasureSpec

            told = stderr()
            measured(
                loaded,
                dataset,
                home(),
                MeasureSpec(steps=steps, rounding=rounding),
                listen=lambda number, of, trial: told.print(
                    f"trial {number} of {of}: {trial.name}, {trial.workers} workers", highlight=False
                ),
            )
        made = make_plan(loaded, dataset, home())
        answer(made.to_dict(), plan_table(made))
    if made.problem:
        raise typer.Exit(WRONG_INPUT)


def schema(as_json: Json = True) -> None:
    """Print the JSON Schema of a spec; it is JSON with and without --json."""
    with answering(as_json) as answer:
        from raydml.spec import JobSpec

        answer(JobSpec.model_json_schema(), "")
