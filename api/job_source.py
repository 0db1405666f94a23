"""The streams of jobs, as followers and pages read them: events, metrics, and the logs of attempts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from api.eventstream import Item
from api.followers import Head
from api.job_shapes import event_document, line_document, metric_document
from raydml.jobs.outputs import read_output, size_of
from raydml.jobs.retention import first_kept
from raydml.jobs.standing import Standing, standings
from raydml.jobs.store import JobStore


@dataclass(frozen=True)
class StreamKey:
    """One stream of a job; `attempt` is that of a log, 0 for the others."""

    kind: Literal["events", "metrics", "logs"]
    job: str
    attempt: int = 0


class JobSource:
    """Reads a server's database, and the logs in its folder."""

    def __init__(self, store: JobStore) -> None:
        self._store = store

    def heads(self, keys: Sequence[StreamKey]) -> Mapping[StreamKey, Head]:
        """How far each stream is: one query, and a look at the size of each log."""
        found = standings(self._store.database, {key.job for key in keys})
        return {key: self._head(key, found[key.job]) for key in keys if key.job in found}

    def head(self, key: StreamKey) -> Head:
        """How far one stream is, and what is still kept of it."""
        head = self.heads([key])[key]
        return head if key.kind == "logs" else replace(head, first=first_kept(self._store.database, key.kind, key.job))

    def read(self, key: StreamKey, after: int, limit: int) -> Sequence[Item]:
        """The next items behind an id."""
        match key.kind:
            case "events":
                events = self._store.events(key.job, after, limit)
                return [Item(event.seq, event_document(event)) for event in events]
            case "metrics":
                metrics = self._store.metrics(key.job, after, limit)
                return [Item(metric.seq, metric_document(metric)) for metric in metrics]
            case "logs":
                over = standings(self._store.database, [key.job])[key.job].over(key.attempt)
                path = self._store.log_path(key.job, key.attempt)
                return [Item(line.end, line_document(line)) for line in read_output(path, after, limit, over=over)]

    def _head(self, key: StreamKey, standing: Standing) -> Head:
        end = {"state": standing.state}
        if key.kind == "logs":
            newer = standing.attempt if standing.attempt > key.attempt else None
            said = {**end, "attempt": key.attempt, "next_attempt": newer}
            size = size_of(self._store.log_path(key.job, key.attempt))
            return Head(size, said if standing.over(key.attempt) else None)
        last = standing.last_event if key.kind == "events" else standing.last_metric
        return Head(last, end if standing.terminal else None)
