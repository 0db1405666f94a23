"""`raydml compare`: what was gained from one run to another, or from one configuration to another over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from raydml.cli.output import Json, answering

Side = typer.Argument(show_default=False, help="a run's name or folder; several seeds of one configuration: A1,A2,A3")
Before = Annotated[str, Side]
After = Annotated[str, Side]
MetricOption = Annotated[
    Literal["cosine", "euclidean", "manhattan"] | None, typer.Option("--metric", help="distance between embeddings")
]
Over = Annotated[
    Literal["queries", "classes"], typer.Option(help="what is drawn anew: single queries, or whole classes of them")
]
Confidence = Annotated[float, typer.Option(help="part of the resamples that an interval holds")]
Repeats = Annotated[int, typer.Option(help="resamples behind an interval")]
Seed = Annotated[int, typer.Option(help="of the resamples")]
Shown = Annotated[int, typer.Option(help="queries that are listed, of those fixed and of those broken")]


def compare(
    before: Before,
    after: After,
    metric: MetricOption = None,
    over: Over = "queries",
    confidence: Confidence = 0.95,
    repeats: Repeats = 1000,
    seed: Seed = 0,
    shown: Shown = 20,
    as_json: Json = False,
) -> None:
    """Compare two runs on the same queries: differences with intervals, and which queries got fixed or broke."""
    with answering(as_json) as answer:
        from raydml import comparison

        options = {"metric": metric, "over": over, "confidence": confidence, "repeats": repeats}
        how: dict[str, Any] = {**options, "seed": seed, "shown": shown}
        found = comparison.compare(before.split(","), after.split(","), **how).to_dict()
        answer(found, comparison_shown(found))


def comparison_shown(found: Mapping[str, Any]) -> RenderableType:
    """All of a comparison, a run's or a server's."""
    parts: list[RenderableType] = [_gains(found)]
    for name, words in (("fixed", "first neighbour now right"), ("broken", "first neighbour now wrong")):
        if found[f"num_{name}"]:
            parts.append(_changed(f"{name}: {words}, {found[f'num_{name}']} queries", found[name]))
    return Group(*parts, *map(Text, found["notes"]))


def _gains(found: Mapping[str, Any]) -> Table:
    from raydml.cli.tables import METRIC_NAMES

    how = found["how"]
    title = f"{found['queries']} queries, {found['gallery']} in the gallery, {found['metric']}"
    table = Table("", title=title, title_justify="left")
    interval = f"{how['confidence']:.0%} over {found['chance']}"
    for heading in (", ".join(found["before"]), ", ".join(found["after"]), "gained", interval):
        table.add_column(Text(heading), justify="right")
    table.add_column("")
    for name, row in found["metrics"].items():
        numbers = (f"{row['before']:.4f}", f"{row['after']:.4f}", f"{row['gained']:+.4f}")
        low, high = row["interval"]
        verdict = ("better" if row["gained"] > 0 else "worse") if row["significant"] else "may be chance"
        table.add_row(METRIC_NAMES.get(name, name), *numbers, f"{low:+.4f} to {high:+.4f}", verdict)
    return table


def _changed(title: str, queries: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("query", "class", title=title, title_justify="left")
    for heading in ("precision@1", "MAP@R"):
        table.add_column(heading, justify="right")
    for query in queries:
        changes = (
            f"{query['before'][name]:.2f} -> {query['after'][name]:.2f}" for name in ("precision_at_1", "map_at_r")
        )
        table.add_row(Text(query["id"], overflow="fold"), Text(query["label"]), *changes)
    return table
