"""Commands about sweeps of a server: sweeps create, list, get, trials, watch, and what can be asked of one."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from raydml.cli.jobs import Attempt, Deadline, Follow, Name, Priority, States
from raydml.cli.output import FAILED, Json, stderr
from raydml.cli.remote import Labels, Limit, Local, Url, asking, pairs
from raydml.cli.specs import Overrides, SpecPath
from raydml.cli.telling import events_shown, logs_shown

app = typer.Typer(help="Searches of a server (raydml serve): create, watch and stop them.", no_args_is_help=True)

SweepId = Annotated[str, typer.Argument(metavar="SWEEP", help="a sweep's id", show_default=False)]
Watch = Annotated[bool, typer.Option("--watch", help="tell what happens to its trials until it has ended")]


@app.command()
def create(
    spec: SpecPath,
    overrides: Overrides = None,
    name: Name = None,
    labels: Labels = None,
    priority: Priority = None,
    deadline: Deadline = None,
    watch: Watch = False,
    url: Url = None,
    local: Local = None,
    as_json: Json = False,
) -> None:
    """Hand a spec with a section tune to the server: its sweep is kept, and will run, when this returns."""
    said: dict[str, Any] = {"name": name, "labels": pairs(labels, "--label"), "priority": priority}
    with asking(url, local, as_json) as (client, answer):
        from raydml.cli.job_tables import job_table
        from raydml.specfile import load_spec

        sweep = client.sweeps.create(load_spec(spec, overrides or ()), deadline_seconds=deadline, **said)
        if watch:
            _watched(client, sweep.id, answer)
        else:
            answer(sweep.facts.model_dump(mode="json"), job_table(sweep.facts))


@app.command("list")
def list_(
    states: States = None,
    labels: Labels = None,
    name: Name = None,
    limit: Limit = 50,
    url: Url = None,
    local: Local = None,
    as_json: Json = False,
) -> None:
    """List sweeps, the newest first."""
    wanted = pairs(labels, "--label")
    with asking(url, local, as_json) as (client, answer):
        from raydml.cli.sweep_tables import sweeps_table

        found = client.sweeps.list(state=states or (), labels=wanted, name=name, page_size=min(limit, 1000))
        sweeps = [sweep.facts for sweep in islice(found, limit)]
        answer({"sweeps": [sweep.model_dump(mode="json") for sweep in sweeps]}, sweeps_table(sweeps))


@app.command()
def get(sweep: SweepId, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Show a sweep as it is now."""
    with asking(url, local, as_json) as (client, answer):
        from raydml.cli.job_tables import job_table

        facts = client.sweeps.get(sweep).facts
        answer(facts.model_dump(mode="json"), job_table(facts))


@app.command()
def trials(sweep: SweepId, limit: Limit = 50, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Show the leaderboard, the best first, while it searches too."""
    with asking(url, local, as_json) as (client, answer):
        from raydml.cli.sweep_tables import trials_table

        found = client.sweeps[sweep].trials(limit)
        answer(found.model_dump(mode="json"), trials_table(found))


@app.command()
def watch(sweep: SweepId, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Tell what happens to a sweep until it has ended; Ctrl-C leaves it running. Exit code 1 unless it succeeded."""
    with asking(url, local, as_json) as (client, answer):
        _watched(client, sweep, answer)


@app.command()
def events(sweep: SweepId, follow: Follow = False, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Show what happened to a sweep and its trials."""
    with asking(url, local, as_json) as (client, answer):
        events_shown("sweep", client.sweeps[sweep], follow, answer)


@app.command()
def logs(
    sweep: SweepId,
    follow: Follow = False,
    attempt: Attempt = None,
    url: Url = None,
    local: Local = None,
    as_json: Json = False,
) -> None:
    """Show what a sweep's process wrote."""
    with asking(url, local, as_json) as (client, answer):
        logs_shown("sweep", client.sweeps[sweep], follow, attempt, answer)


@app.command()
def cancel(sweep: SweepId, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Save a checkpoint of each running trial and stop, for good."""
    _verb("cancel", sweep, url, local, as_json)


@app.command()
def kill(sweep: SweepId, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Stop at once, for good."""
    _verb("kill", sweep, url, local, as_json)


@app.command()
def pause(sweep: SweepId, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Save a checkpoint of each running trial and stop, until resumed."""
    _verb("pause", sweep, url, local, as_json)


@app.command()
def resume(sweep: SweepId, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Go on with every trial where it was."""
    _verb("resume", sweep, url, local, as_json)


def _verb(verb: str, sweep: str, url: str | None, local: Path | None, as_json: bool) -> None:
    with asking(url, local, as_json) as (client, answer):
        facts = getattr(client.sweeps[sweep], verb)().facts
        answer(facts.model_dump(mode="json"), f"sweep {sweep}: {verb} is asked for, and it is {facts.state} now")


def _watched(client: Any, sweep: str, answer: Any) -> None:
    """Its events on stderr as they happen; then its leaderboard, and beside it in the document what it is now."""
    from raydml.cli.sweep_tables import trials_table
    from raydml.cli.watching import followed

    followed("sweep", client.sweeps[sweep], stderr())
    facts, board = client.sweeps.get(sweep).facts, client.sweeps[sweep].trials()
    answer(facts.model_dump(mode="json") | {"trials": board.model_dump(mode="json")}, trials_table(board))
    if facts.state != "succeeded":
        raise typer.Exit(FAILED)
