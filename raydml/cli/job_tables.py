"""What a person reads about jobs: tables, and an event in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from raydml.cli.tables import facts_table, metrics_table

if TYPE_CHECKING:
    from raydml.client.job_documents import Checkpoint, Event, JobFacts, Workers


def jobs_table(jobs: Sequence[JobFacts]) -> Table:
    """`raydml jobs list`."""
    table = Table("job", "name", "state", "step", "workers", "created", "labels", title="jobs", title_justify="left")
    for job in jobs:
        labels = ", ".join(f"{key}={value}" for key, value in job.labels.items())
        cells = (job.id, job.name, job.state, _step(job), _workers(job), clock(job.created_at), labels)
        table.add_row(*map(Text, cells))
    return table


def job_table(job: JobFacts) -> RenderableType:
    """`raydml jobs get`: one job."""
    facts = {
        "job": f"{job.id}, {job.name}",
        "state": job.state if job.reason is None else f"{job.state}: {job.reason.message} ({job.reason.code})",
        "step": _step(job),
        "workers": _workers(job),
        "trials": counted((job.progress or {}).get("trials", {})) or None,
        "attempt": job.attempt,
        "priority": job.priority,
        "created": clock(job.created_at),
        "started": clock(job.started_at),
        "finished": clock(job.finished_at),
        "labels": ", ".join(f"{key}={value}" for key, value in job.labels.items()) or "none",
        "forked from": None if job.parent is None else f"{job.parent.job} at step {job.parent.step}",
        **{name: value for name, value in (job.result or {}).items() if not isinstance(value, dict | list)},
    }
    table = facts_table({name: value for name, value in facts.items() if value is not None})
    measured = job.result if job.result and job.result.get("metrics") else None
    return table if measured is None else Group(metrics_table(measured), table)


def counted(happened: Mapping[str, int]) -> str:
    """How often each thing happened to the trials of a sweep."""
    return ", ".join(f"{number} {event}" for event, number in happened.items())


def events_lines(events: Sequence[Event]) -> Text:
    """Events, one a line."""
    return Text("\n").join([event_line(event) for event in events])


def event_line(event: Event) -> Text:
    """`raydml jobs events`: when, and what."""
    return Text(f"{clock(event.time)}  {event.seq:>5}  {words(event)}")


def words(event: Event) -> str:
    """An event as a person says it; one of an unknown type with all that it holds."""
    say = _WORDS.get(event.type)
    return say(event.data) if say else _all(event)


def checkpoints_table(checkpoints: Sequence[Checkpoint]) -> Table:
    """`raydml jobs checkpoints`."""
    table = Table("step", "seen", "removed", "sha256 of its state")
    for one in checkpoints:
        table.add_row(str(one.step), clock(one.seen_at), clock(one.removed_at), one.state_sha256)
    return table


def workers_table(workers: Workers) -> RenderableType:
    """`raydml jobs workers`."""
    table = Table("time", "step", "cause", "workers", "s down", "steps lost", "whom, and why")
    for change in workers.changes:
        known = "; ".join(part for part in (", ".join(change.members), change.note) if part)
        row = (clock(change.time), str(change.step), change.cause, f"{change.before} -> {change.after}")
        table.add_row(*row, f"{change.down:.2f}", str(change.lost), Text(known, overflow="fold"))
    wanted = f"{workers.wanted.min} to {workers.wanted.max}"
    return Group(table, facts_table({"workers now": workers.now, "wanted": wanted}))


def metric_line(step: int, data: Mapping[str, Any]) -> Text:
    """`raydml jobs metrics`: a line that training logged."""
    shown = [f"{name} {value:.5g}" for name, value in data.items() if isinstance(value, float) and name != "time"]
    return Text("  ".join([f"step {step}", *shown]))


def clock(time: datetime | None) -> str:
    """Local time; empty where there is none."""
    return "" if time is None else time.astimezone().isoformat(" ", "seconds")[:19]


def _step(job: JobFacts) -> str:
    known = job.progress or {}
    return f"{known['step']}/{known['steps']}" if known.get("steps") else ""


def _workers(job: JobFacts) -> str:
    now = (job.progress or {}).get("workers")
    wanted = f"{job.workers.min} to {job.workers.max}"
    return f"{now} ({wanted})" if now and not job.ended else wanted


def _state(data: Mapping[str, Any]) -> str:
    reason = data.get("reason")
    why = "" if not reason else f": {reason['message']}" if isinstance(reason, dict) else f": {reason}"
    return f"{data['from']} -> {data['to']}{why}" if data.get("from") else f"{data['to']}{why}"


def _membership(data: Mapping[str, Any]) -> str:
    note = f" ({data['note']})" if data.get("note") else ""
    return f"{data['cause']} at step {data['step']}: {data['before']} -> {data['after']} workers{note}"


def _evaluation(data: Mapping[str, Any]) -> str:
    measured = "  ".join(f"{name} {value:.3f}" for name, value in data["metrics"].items())
    return f"evaluation at step {data['step']}: {measured}"


def _trial(data: Mapping[str, Any]) -> str:
    """What happened to a trial or a configuration of a sweep."""
    whose = [f"{name} {data[name]}" for name in ("trial", "configuration") if name in data]
    beside = ("event", "time", "trial", "configuration", "attempt")
    known = [f"{name} {_short(value)}" for name, value in data.items() if name not in beside]
    return "  ".join([" ".join([*whose, data["event"]]), *known])


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} = {_short(inner)}" for name, inner in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _all(event: Event) -> str:
    return " ".join([event.type, *(f"{name}={value}" for name, value in event.data.items())])


_WORDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "state": _state,
    "membership": _membership,
    "evaluation": _evaluation,
    "checkpoint": lambda data: f"checkpoint of step {data['step']}",
    "verb": lambda data: f"{data['verb']} was asked for by {data['by']}",
    "trial": _trial,
    "attempt": lambda data: f"attempt {data['attempt']} with {data['workers']} workers",
    "watch": lambda data: f"step {data['step']}: {data.get('message', data.get('rule'))}",
}
