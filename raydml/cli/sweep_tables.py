"""What a person reads about sweeps: a list of them, and the leaderboard of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from raydml.cli.job_tables import clock, counted

if TYPE_CHECKING:
    from raydml.client.job_documents import JobFacts, Trial, Trials
    from raydml.tuning.result import Row


def sweeps_table(sweeps: Sequence[JobFacts]) -> Table:
    """`raydml sweeps list`."""
    table = Table(
        "sweep", "name", "state", "trials", "at once", "created", "labels", title="sweeps", title_justify="left"
    )
    for sweep in sweeps:
        labels = ", ".join(f"{key}={value}" for key, value in sweep.labels.items())
        at_once = f"{sweep.workers.min} to {sweep.workers.max}"
        known = (sweep.progress or {}).get("trials", {})
        cells = (sweep.id, sweep.name, sweep.state, counted(known), at_once, clock(sweep.created_at), labels)
        table.add_row(*map(Text, cells))
    return table


def trials_table(board: Trials) -> Table:
    """`raydml sweeps trials`: the leaderboard."""
    table = Table(title=f"{board.state}: {board.objective} on validation classes", title_justify="left")
    for heading in ("", "configuration"):
        table.add_column(heading)
    costs = [board.cost, "front"] if board.cost else []
    for heading in ("state", "step", board.objective, *costs):
        table.add_column(heading, justify="right")
    for row in board:
        values = ", ".join(f"{name} {short(value)}" for name, value in row.values.items())
        cost = [short(getattr(row, board.cost)), "*" if row.on_front else ""] if board.cost else []
        table.add_row(str(row.configuration), Text(values), row.state, str(row.step), Text(score(row)), *cost)
    if len(board) < board.total:
        table.caption = f"and {board.total - len(board)} more"
    return table


def score(row: Trial | Row) -> str:
    """Its mean and, of several seeds, its deviation; why it failed, where it never had one."""
    if row.score is None:
        return row.reason or "-"
    return f"{row.score:.4f}" + (f" ± {row.deviation:.4f}" if row.deviation is not None else "")


def short(value: Any) -> str:
    """A value of a configuration."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
