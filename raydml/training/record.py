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
from raydml.files import write_bytes, write_json
from raydml.membership.messages import Event
from raydml.training.lines import Lines, read_lines

__all__ = ["RunRecord", "read_lines"]

_TAIL = 1 << 16  # bytes at the end of the metrics, far more than the lines of two steps


class RunRecord:
    """Files of one run: run.json, metrics.jsonl, events.jsonl, failure.json, and the requests `stop` and `resize`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics_path = folder / "metrics.jsonl"
        self.events_path = folder / "events.jsonl"
        self._metrics = Lines(self.metrics_path)
        self._events = Lines(self.events_path, durable=True)
        self._stop = folder / "stop"
        self._resize = folder / "resize"
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
        self._events.append(asdict(event) | {"note": note})

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

    def request_resize(self, workers: int) -> None:
        """Ask the driver for this many workers; a later request replaces one that it has not taken yet."""
        write_bytes(self._resize, str(workers).encode())

    def resize_requested(self) -> int | None:
        """The number of workers that somebody asked for since the last call; each request is told once."""
        taken = self.folder / "resize-taken"
        try:
            os.rename(self._resize, taken)
        except FileNotFoundError:
            return None
        workers = int(taken.read_text())
        taken.unlink()
        return workers

    def clear_requests(self) -> None:
        """Before a run starts: forget old requests and an old failure."""
        for path in (self._stop, self._resize, self._failure):
            path.unlink(missing_ok=True)

    def fail(self, error: RaydmlError) -> None:
        """Keep an error that a worker raised, for the process that waits for the run, if the disk takes it."""
        with suppress(ResourceError):
            write_json(self._failure, {"kind": type(error).__name__, "message": error.message})

    def failure(self) -> dict[str, str] | None:
        """The error that a worker kept: its kind and message."""
        found: dict[str, str] | None = json.loads(self._failure.read_text()) if self._failure.exists() else None
        return found
