"""Commands about jobs of a server: jobs create, list, get, watch, and what can be asked of one."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from raydml.cli.comparing import MetricOption, Over, comparison_shown
from raydml.cli.output import FAILED, Json, stderr
from raydml.cli.remote import JobId, Labels, Limit, Local, Url, asking, changes, pairs, workers
from raydml.cli.specs import Overrides, SpecPath
from raydml.cli.telling import events_shown, logs_shown

app = typer.Typer(help="Jobs of a server (raydml serve): create, watch, change and stop them.", no_args_is_help=True)

Name = Annotated[str | None, typer.Option("--name", help="that of the spec if none is given")]
Priority = Annotated[int | None, typer.Option("--priority", min=-100, max=100, help="more goes first")]
Deadline = Annotated[int | None, typer.Option("--deadline", metavar="SECONDS", min=1, help="after which it fails")]
Watch = Annotated[bool, typer.Option("--watch", help="show its progress until it has ended")]
States = Annotated[list[str] | None, typer.Option("--state", help="only those in this state; may be repeated")]
Follow = Annotated[bool, typer.Option("--follow", help="go on with a line for each new one until the job has ended")]
Attempt = Annotated[int | None, typer.Option("--attempt", min=1, help="the newest if none is given")]
WorkersWanted = Annotated[str, typer.Argument(metavar="N|MIN:MAX", help="most, or fewest and most", show_default=False)]
Step = Annotated[int | None, typer.Option("--step", min=0, help="of the checkpoint; the last one if none is given")]
File = Annotated[str, typer.Argument(metavar="PATH", help="as `raydml jobs artifacts` names it", show_default=False)]
Out = Annotated[Path, typer.Option("--out", metavar="FILE|DIR", help="where it goes")]


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
    """Hand a spec to the server: its job is kept, and will run, when this returns."""
    said: dict[str, Any] = {"name": name, "labels": pairs(labels, "--label"), "priority": priority}
    with asking(url, local, as_json) as (client, answer):
        from raydml.cli.job_tables import job_table
        from raydml.specfile import load_spec

        job = client.jobs.create(
            load_spec(spec, overrides or ()), deadline_seconds=deadline, **said
        )  # a wrong spec is told before it is sent
        if watch:
            _watched(client, job.id, answer)
        else:
            answer(job.facts.model_dump(mode="json"), job_table(job.facts))


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
    """List jobs, the newest first."""
    wanted = pairs(labels, "--label")
    with asking(url, local, as_json) as (client, answer):
        from raydml.cli.job_tables import jobs_table

        found = client.jobs.list(state=states or (), labels=wanted, name=name, page_size=min(limit, 1000))
        jobs = [job.facts for job in islice(found, limit)]
        answer({"jobs": [job.model_dump(mode="json") for job in jobs]}, jobs_table(jobs))


@app.command()
def get(job: JobId, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Show a job as it is now."""
    with asking(url, local, as_json) as (client, answer):
        from raydml.cli.job_tables import job_table

        facts = client.jobs.get(job).facts
        answer(facts.model_dump(mode="json"), job_table(facts))


@app.command()
def watch(job: JobId, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Show a job's progress until it has ended; Ctrl-C leaves it running. Exit code 1 where it did not succeed."""
    with asking(url, local, as_json) as (client, answer):
        _watched(client, job, answer)


@app.command()
def events(job: JobId, follow: Follow = False, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Show what happened to a job."""
    with asking(url, local, as_json) as (client, answer):
        events_shown("job", client.jobs[job], follow, answer)


@app.command()
def logs(
    job: JobId,
    follow: Follow = False,
    attempt: Attempt = None,
    url: Url = None,
    local: Local = None,
    as_json: Json = False,
) -> None:
    """Show what a job's process wrote."""
    with asking(url, local, as_json) as (client, answer):
        logs_shown("job", client.jobs[job], follow, attempt, answer)


@app.command()
def metrics(job: JobId, follow: Follow = False, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Show what training logged."""
    with asking(url, local, as_json) as (client, answer):
        from raydml.cli.job_tables import metric_line

        if follow:
            for one in client.jobs[job].follow_metrics():
                answer(one.model_dump(mode="json"), metric_line(one.step, one.data))
        else:
            found = client.jobs[job].metrics()
            shown = Text("\n").join([metric_line(one.step, one.data) for one in found])
            answer({"job": job, "metrics": found.model_dump(mode="json")["items"]}, shown)


@app.command()
def cancel(job: JobId, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Save a checkpoint and stop, for good."""
    _verb("cancel", job, url, local, as_json)


@app.command()
def kill(job: JobId, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Stop at once, for good."""
    _verb("kill", job, url, local, as_json)


@app.command()
def pause(job: JobId, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Save a checkpoint and stop, until resumed."""
    _verb("pause", job, url, local, as_json)


@app.command()
def resume(job: JobId, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Go on from the last checkpoint."""
    _verb("resume", job, url, local, as_json)


@app.command()
def resize(job: JobId, wanted: WorkersWanted, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Ask for another number of workers; the trained bits stay the same."""
    number = workers(wanted)
    with asking(url, local, as_json) as (client, answer):
        facts = client.jobs[job].resize(number).facts
        shown = f"job {job}: {facts.workers.min} to {facts.workers.max} workers from now on; raydml jobs workers {job}"
        answer(facts.model_dump(mode="json"), shown)


@app.command()
def change(
    job: JobId,
    labels: Labels = None,
    priority: Priority = None,
    max_workers: Annotated[int | None, typer.Option("--max-workers", min=1, help="most workers")] = None,
    url: Url = None,
    local: Local = None,
    as_json: Json = False,
) -> None:
    """Change a job's labels (an empty value removes one), priority or most workers."""
    given = {key: value or None for key, value in pairs(labels, "--label").items()}
    with asking(url, local, as_json) as (client, answer):
        from raydml.cli.job_tables import job_table

        changed = client.jobs[job].patch(labels=given or None, priority=priority, max_workers=max_workers).facts
        answer(changed.model_dump(mode="json"), job_table(changed))


@app.command()
def fork(
    job: JobId,
    step: Step = None,
    overrides: Overrides = None,
    name: Name = None,
    labels: Labels = None,
    url: Url = None,
    local: Local = None,
    as_json: Json = False,
) -> None:
    """Make a new job that goes on from a checkpoint of this one, with changes of its spec."""
    said: dict[str, Any] = {"name": name, "labels": pairs(labels, "--label") or None}
    patch = changes(overrides)
    with asking(url, local, as_json) as (client, answer):
        from raydml.cli.job_tables import job_table

        made = client.jobs[job].fork(step, patch or None, **said).facts
        answer(made.model_dump(mode="json"), job_table(made))


@app.command()
def checkpoints(job: JobId, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """List a job's checkpoints."""
    with asking(url, local, as_json) as (client, answer):
        from raydml.cli.job_tables import checkpoints_table

        found = client.jobs[job].checkpoints()
        answer({"job": job, "checkpoints": [one.model_dump(mode="json") for one in found]}, checkpoints_table(found))


@app.command("workers")
def workers_(job: JobId, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Show when workers came, went and died, and what that cost."""
    with asking(url, local, as_json) as (client, answer):
        from raydml.cli.job_tables import workers_table

        found = client.jobs[job].workers()
        answer(found.model_dump(mode="json"), workers_table(found))


@app.command()
def artifacts(job: JobId, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """List the files of a job's run."""
    with asking(url, local, as_json) as (client, answer):
        found = list(client.jobs[job].artifacts())
        shown = Text("\n".join(f"{one.size:>12}  {one.path}" for one in found))
        answer({"job": job, "artifacts": [one.model_dump(mode="json") for one in found]}, shown)


@app.command()
def download(
    job: JobId, path: File, out: Out = Path("."), url: Url = None, local: Local = None, as_json: Json = False
) -> None:
    """Fetch a file of a job's run, its SHA-256 checked."""
    with asking(url, local, as_json) as (client, answer):
        got = client.jobs[job].download(path, out)
        answer({"job": job, "path": path, "file": str(got), "size": got.stat().st_size}, str(got))


@app.command()
def evaluation(job: JobId, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Show how good a job's model is, beside raw inputs."""
    with asking(url, local, as_json) as (client, answer):
        from raydml.cli.tables import metrics_table

        found = client.jobs[job].evaluation()
        answer(found.model_dump(mode="json"), metrics_table(found.model_dump()))


@app.command()
def compare(
    job: JobId,
    others: Annotated[list[str], typer.Argument(metavar="JOB...", help="jobs to compare with", show_default=False)],
    beside: Annotated[list[str] | None, typer.Option(help="a further seed of the first job's configuration")] = None,
    metric: MetricOption = None,
    over: Over = "queries",
    url: Url = None,
    local: Local = None,
    as_json: Json = False,
) -> None:
    """Compare a job with another one on the same queries; several others are seeds of one configuration."""
    with asking(url, local, as_json) as (client, answer):
        found = client.jobs[job].compare(*others, beside=beside or (), metric=metric, over=over)
        answer(found.model_dump(mode="json"), comparison_shown(found.model_dump()))


def _verb(verb: str, job: str, url: str | None, local: Path | None, as_json: bool) -> None:
    with asking(url, local, as_json) as (client, answer):
        facts = getattr(client.jobs[job], verb)().facts
        answer(facts.model_dump(mode="json"), f"job {job}: {verb} is asked for, and it is {facts.state} now")


def _watched(client: Any, job: str, answer: Any) -> None:
    from raydml.cli.job_tables import job_table
    from raydml.cli.watching import watch as watched

    facts = watched(client.jobs[job], stderr()).facts
    answer(facts.model_dump(mode="json"), job_table(facts))
    if facts.state != "succeeded":
        raise typer.Exit(FAILED)
