"""The run's folder: its state, metrics by step, events, and requests to it; written by one process, read by any."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raydml.errors import RaydmlError, ResourceError
from raydml.files import append_line, write_bytes, write_json
from raydml.membership.messages import Event
from raydml.training.lines import Lines, read_lines

__all__ = ["RunRecord", "read_lines"]

_TAIL = 1 << 16  # bytes at the end of the metrics, far more than the lines of two steps


class RunRecord:
    """Files of one run: run.json, metrics.jsonl, events.jsonl, resizes.jsonl, failure.json, and the request `stop`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics_path = folder / "metrics.jsonl"
        self.events_path = folder / "events.jsonl"
        self._metrics = Lines(self.metrics_path)
        self._events = Lines(self.events_path, durable=True)
        self._stop = folder / "stop"
        self._resizes = folder / "resizes.jsonl"
        self._resizes_seen = 0  # bytes
        self._failure = folder / "failure.json"

    def read(self) -> dict[str, Any]:
        """What is known of the run; empty before it began."""
        path = self.folder / "run.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def change(self, **fields: Any) -> None:
        """Write these fields over the known ones, whole or not at all, and lines that a full disk refused."""
        self._metrics.flush()
        self._events.flush()
        write_json(self.folder / "run.json", self.read() | fields | {"updated": round(time.time(), 3)})

    def log(self, **values: Any) -> None:
        """Append one line to the metrics; what a full disk refuses waits in memory, and training goes on."""
        self._metrics.append(values)

    def log_event(self, event: Event, note: str = "") -> None:
        """Append one change of the group to the events, durably; `note` is what a person should know besides."""
        self._events.append(asdict(event) | {"note": "; ".join(part for part in (event.note, note) if part)})

    def events(self) -> list[dict[str, Any]]:
        """Every change of the group so far: the fields of an Event, and `note`."""
        return self._events.read()

    def warnings(self) -> list[dict[str, Any]]:
        """Rules of `watch` that were broken so far: step, rule, action and message of each."""
        return [{"step": line["step"], **line["warning"]} for line in self._metrics.read() if "warning" in line]

    def last_step(self) -> int:
        """The last step in the metrics, 0 without any."""
        return max((line["step"] for line in self._metrics.read()), default=0)

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps that a resumed run will take again, and a last line cut short by a kill."""
        if self.metrics_path.exists():
            kept = [line for line in read_lines(self.metrics_path)[0] if line["step"] <= step]
            write_bytes(self.metrics_path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def mend(self) -> int:
        """Drop a last line of the metrics that a kill cut short; the last step that is logged, 0 where none is."""
        if not self.metrics_path.exists():
            return 0
        with self.metrics_path.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            tail = file.read()
            complete = tail[: tail.rfind(b"\n") + 1]
            file.truncate(size - len(tail) + len(complete))
        return max((line["step"] for line in self._last_lines()), default=0)

    def has_validation(self, step: int) -> bool:
        """Whether the validation after this step is logged, as far as the last lines tell."""
        return any(line["step"] == step and "validation" in line for line in self._last_lines())

    def _last_lines(self) -> list[dict[str, Any]]:
        """Complete lines at the end of the metrics."""
        if not self.metrics_path.exists():
            return []
        start = max(0, self.metrics_path.stat().st_size - _TAIL)
        with self.metrics_path.open("rb") as file:
            file.seek(start)
            lines = file.read().rpartition(b"\n")[0].splitlines()
        return [json.loads(line) for line in (lines[1:] if start else lines)]

    def request_stop(self) -> None:
        """Ask the workers to save a checkpoint and stop."""
        self._stop.touch()

    def stop_requested(self) -> bool:
        """Whether somebody asked."""
        return self._stop.exists()

    def request_resize(self, workers: int, limits: tuple[int, int]) -> None:
        """Ask for this many workers, durably: the last request holds until the spec allows other `limits`.

        ResourceError where the disk refuses: then nobody was asked.
        """
        request = {"time": round(time.time(), 3), "workers": workers, "limits": limits}
        append_line(self._resizes, json.dumps(request), durable=True)

    def resizes(self) -> list[dict[str, Any]]:
        """All requests so far: time, workers and limits of each."""
        return read_lines(self._resizes)[0] if self._resizes.exists() else []

    def resize_requested(self, limits: tuple[int, int]) -> int | None:
        """The last number that was asked for under these limits, by this or an earlier attempt; each is told once."""
        size = self._resizes.stat().st_size if self._resizes.exists() else 0
        if size == self._resizes_seen:
            return None
        requests, self._resizes_seen = read_lines(self._resizes, self._resizes_seen)
        fitting = [request["workers"] for request in requests if tuple(request["limits"]) == limits]
        return fitting[-1] if fitting else None

    def clear_requests(self) -> None:
        """Before a run starts: forget old requests to stop, and an old failure."""
        for path in (self._stop, self._failure):
            path.unlink(missing_ok=True)

    def fail(self, error: RaydmlError) -> None:
        """Keep an error that a worker raised, for the process that waits for the run, if the disk takes it."""
        with suppress(ResourceError):
            write_json(self._failure, {"kind": type(error).__name__, "message": error.message})

    def failure(self) -> dict[str, str] | None:
        """The error that a worker kept: its kind and message."""
        found: dict[str, str] | None = json.loads(self._failure.read_text()) if self._failure.exists() else None
        return found
