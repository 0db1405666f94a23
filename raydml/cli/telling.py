"""A job or a sweep in; what happened to it and what its process wrote, as lines or one document, out."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from raydml.cli.output import Answer


def events_shown(kind: str, reference: Any, follow: bool, answer: Answer) -> None:
    """Its events: all at once, or a line for each, with `follow` until it has ended."""
    from raydml.cli.job_tables import event_line, events_lines

    told = reference.events(follow=follow)
    if follow:
        for event in told:
            answer(event.model_dump(mode="json"), event_line(event))
    else:
        found = list(told)
        answer({kind: reference.id, "events": [event.model_dump(mode="json") for event in found]}, events_lines(found))


def logs_shown(kind: str, reference: Any, follow: bool, attempt: int | None, answer: Answer) -> None:
    """Lines of an attempt's log, in the same two ways."""
    told = reference.logs(follow=follow, attempt=attempt)
    if follow:
        for line in told:
            answer(line.model_dump(mode="json"), Text(line.text))
    else:
        found = list(told)
        shown = Text("\n".join(line.text for line in found))
        answer({kind: reference.id, "lines": [line.model_dump(mode="json") for line in found]}, shown)
