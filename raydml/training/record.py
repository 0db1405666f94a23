"""The run's folder: its state, metrics by step, and requests to it; written by one process, read by any."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from raydml.errors import RaydmlError
from raydml.files import append_line, write_bytes, write_json

_TAIL = 1 << 16  # bytes at the end of the metrics, far more than the lines of two steps


class RunRecord:
    """Files of one run: run.json, metrics.jsonl, failure.json, and the request `stop`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics_path = folder / "metrics.jsonl"
        self._stop = folder / "stop"
        self._failure = folder / "failure.json"

    def read(self) -> dict[str, Any]:
        """What is known of the run; empty before it began."""
        path = self.folder / "run.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def change(self, **fields: Any) -> None:
        """Write these fields over the known ones, whole or not at all."""
        write_json(self.folder / "run.json", self.read() | fields | {"updated": round(time.time(), 3)})

    def log(self, **values: Any) -> None:
        """Append one line to the metrics; ResourceError where the disk is full."""
        append_line(self.metrics_path, json.dumps(values))

    def warnings(self) -> list[dict[str, Any]]:
        """Rules of `watch` that were broken so far: step, rule, action and message of each."""
        lines = read_lines(self.metrics_path)[0] if self.metrics_path.exists() else []
        return [{"step": line["step"], **line["warning"]} for line in lines if "warning" in line]

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

    def clear_requests(self) -> None:
        """Before a run starts: forget an old request and an old failure."""
        for path in (self._stop, self._failure):
            path.unlink(missing_ok=True)

    def fail(self, error: RaydmlError) -> None:
        """Keep an error that a worker raised, for the process that waits for the run."""
        write_json(self._failure, {"kind": type(error).__name__, "message": error.message})

    def failure(self) -> dict[str, str] | None:
        """The error that a worker kept: its kind and message."""
        found: dict[str, str] | None = json.loads(self._failure.read_text()) if self._failure.exists() else None
        return found


def read_lines(path: Path, start: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Complete JSON lines of a file from an offset in bytes on, and the offset behind them."""
    with path.open("rb") as file:
        file.seek(start, os.SEEK_SET)
        complete, newline, _ = file.read().rpartition(b"\n")
    return [json.loads(line) for line in complete.splitlines()], start + len(complete) + len(newline)
