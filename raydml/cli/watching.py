"""A job of a server -> a live bar on stderr until it has ended; Ctrl-C leaves the job running and says so."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from raydml.cli.job_tables import words
from raydml.cli.progress import progress
from raydml.errors import Interrupted

if TYPE_CHECKING:
    from raydml.client.job import Job, JobReference
    from raydml.client.senders import Sender

SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class News:
    """How far a job is, and what happened since the last look."""

    phase: str
    step: int
    steps: int
    loss: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    workers: int = 0
    images_per_second: float = 0.0
    seconds_left: float | None = None
    warnings: tuple[str, ...] = ()
    events: tuple[str, ...] = ()


def watch(
    reference: JobReference[Sender], console: Console, sleep: Callable[[float], None] = time.sleep
) -> Job[Sender]:
    """The job, once it has ended. Raises Interrupted where a person stops watching."""
    seen, metrics = 0, dict[str, float]()
    try:
        with progress(console) as listen:
            while True:
                job = reference.get()  # before the events, so that the last one is seen
                events = list(reference.events(seen, follow=False))
                seen = events[-1].seq if events else seen
                for event in events:
                    metrics |= event.data["metrics"] if event.type == "evaluation" else {}
                warnings = tuple(words(event) for event in events if event.type == "watch")
                told = tuple(words(event) for event in events if event.type != "watch")
                listen(_news(job, metrics, warnings, told))
                if job.facts.ended:
                    return job
                sleep(SECONDS_BETWEEN_LOOKS)
    except KeyboardInterrupt:
        raise _left("job", reference.id) from None


def followed(kind: str, reference: Any, console: Console) -> None:
    """A line for each thing that happens to a sweep, until it has ended. Raises Interrupted like `watch`."""
    try:
        for event in reference.events():
            console.print(Text(words(event)), soft_wrap=True)
    except KeyboardInterrupt:
        raise _left(kind, reference.id) from None


def _left(kind: str, id: str) -> Interrupted:
    """What a person who stops watching is told."""
    return Interrupted(
        f"{kind} {id} goes on; raydml {kind}s watch {id} looks again, raydml {kind}s cancel {id} stops it", **{kind: id}
    )


def _news(job: Job[Sender], metrics: dict[str, float], warnings: tuple[str, ...], events: tuple[str, ...]) -> News:
    known = job.progress or {}
    return News(
        phase=job.state,
        step=known.get("step") or 0,
        steps=known.get("steps") or job.facts.spec["train"]["steps"],
        loss=known.get("loss"),
        metrics=dict(metrics),
        workers=known.get("workers") or 0,
        warnings=warnings,
        events=events,
    )
