"""The command that searches: tune."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table

from raydml.cli.output import Json, answering, stderr
from raydml.cli.runs import Address, Again
from raydml.cli.specs import Overrides, SpecPath
from raydml.cli.sweep_tables import score, short

if TYPE_CHECKING:
    from raydml.evaluation.leaderboard import Standing
    from raydml.tuning.result import Row, StudyResult

ROWS = 20  # of a table that is drawn anew all the time
WORDS = {
    "best": "best",
    "worse": "worse",
    "not significant": "not distinguishable",
    "too few seeds": "nothing can be said",
}


def tune(
    spec: SpecPath,
    overrides: Overrides = None,
    again: Again = False,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Search over fields of a spec, by its section tune; the best becomes a run. The same name resumes a study."""
    with answering(as_json) as answer:
        from raydml.specfile import load_spec
        from raydml.tuning.trials import check_space

        loaded = load_spec(spec, overrides or ())
        check_space(loaded)  # before anything starts: what no spec can be is told at once

        from raydml.tuning.study import tune as search

        with _shown(stderr()) as listen:
            found = search(loaded, again=again, address=address, listen=listen)
        answer(found.summary(), study_table(found))


def study_table(study: StudyResult, most: int | None = None) -> Table:
    """The leaderboard: what varies, how far each configuration came, its score, and the front where there is a cost.

    Once the study has stopped, how each compares with the best too: before that it changes all the time.
    """
    tuned = study.spec.tune
    assert tuned is not None
    facts = f"{study.name}, {study.state}, {study.facts.get('seconds', 0):.0f} s"
    table = Table(title=f"{facts}: {tuned.objective} on validation classes", title_justify="left")
    for heading in ("", "configuration"):
        table.add_column(heading)
    standings = {} if study.state == "running" else study.standings
    compared = ["95 % interval", "against the best"] if standings else []
    costs = [tuned.cost, "front"] if tuned.cost else []
    for heading in ("state", "step", tuned.objective, *compared, *costs):
        table.add_column(heading, justify="right")
    for row in study.rows[:most]:
        values = ", ".join(f"{name} {short(value)}" for name, value in row.values.items())
        cost = [short(getattr(row, tuned.cost)), "*" if row.on_front else ""] if tuned.cost else []
        table.add_row(
            str(row.configuration), values, row.state, str(row.step), score(row), *_compared(standings, row), *cost
        )
    if most is not None and len(study.rows) > most:
        table.caption = f"and {len(study.rows) - most} more"
    elif standings:
        table.caption = study.verdict + _together(study, tuned.objective)
    return table


@contextmanager
def _shown(console: Console) -> Iterator[Callable[[StudyResult], None]]:
    """A function for `tune(listen=...)`: a table that changes, or without a terminal a line for each change."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    with Live(console=console, auto_refresh=False) as live:
        yield lambda study: live.update(study_table(study, ROWS), refresh=True)


class _Lines:
    """One line when a configuration has come further, or ended."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: dict[int, tuple[str, int]] = {}

    def __call__(self, study: StudyResult) -> None:
        for row in sorted(study.rows, key=lambda row: row.configuration):
            if self._told.get(row.configuration) != (row.state, row.step):
                self._told[row.configuration] = (row.state, row.step)
                values = ", ".join(f"{name} {short(value)}" for name, value in row.values.items())
                line = f"configuration {row.configuration} {row.state}, step {row.step}, {score(row)}: {values}"
                self._console.print(line, highlight=False, soft_wrap=True)


def _together(study: StudyResult, objective: str) -> str:
    """What the winner's models of all folds reach on test classes; nothing without folds."""
    found = study.facts.get("reality_check")
    if found is None:
        return ""
    assert study.spec.tune is not None
    objective = study.spec.tune.objective
    separated, concatenated = (found[way][objective] for way in ("separated", "concatenated"))
    return (
        f"\nits {found['folds']} models on test classes: {objective} {separated:.4f} separated, {concatenated:.4f} "
        f"concatenated"
    )


def _compared(standings: Mapping[int, Standing], row: Row) -> list[str]:
    """Two cells: an interval of the mean, and how it compares; none while nothing is compared."""
    if not standings:
        return []
    found = standings.get(row.configuration)
    if found is None:
        return ["-", "not compared"]
    interval = f"{found.interval[0]:.4f} to {found.interval[1]:.4f}" if found.interval else "-"
    return [interval, WORDS[found.verdict] + (f", p = {found.p_value:.2g}" if found.p_value is not None else "")]
