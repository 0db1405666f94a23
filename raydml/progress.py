"""A run's metrics and events -> progress values for whoever watches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from raydml.spec import JobSpec
from raydml.training.history import words
from raydml.training.record import RunRecord, read_lines


@dataclass(frozen=True)
class Progress:
    """How far a run is. `phase` is starting, training or stopping; rates are of the last 20 steps.

    `warnings` are broken rules and failed saves since the last call, `events` changes of the group of workers.
    """

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


class Watch:
    """Reads what workers log and tells one listener; a call of `tick` reads what is new."""

    def __init__(self, record: RunRecord, spec: JobSpec, listen: Callable[[Progress], None] | None) -> None:
        self._spec, self._listen = spec, listen
        paths = (record.metrics_path, record.events_path)
        self._offsets = {path: path.stat().st_size if path.exists() else 0 for path in paths}
        self._last: dict[str, Any] = {}
        self._metrics: dict[str, float] = {}
        self._times: deque[float] = deque(maxlen=20)
        self._phase = "training"
        self._warnings: list[str] = []
        self._events: list[str] = []
        self._workers = 0

    def say(self, phase: str, step: int | None) -> None:
        """Tell of a phase that no log line announces."""
        self._phase = phase if phase == "stopping" else "training"
        if self._listen:
            at = step if step is not None else int(self._last.get("step", 0))
            self._listen(Progress(phase, at, self._spec.train.steps))

    def tick(self) -> None:
        """Tell of the newest of everything logged since the last call."""
        if self._listen is None:
            return
        lines = [line for path in self._offsets for line in self._new_lines(path)]
        for line in lines:
            self._take(line)
        if lines:
            self._listen(self._progress())
            self._warnings.clear()
            self._events.clear()

    def _new_lines(self, path: Path) -> list[dict[str, Any]]:
        if not path.exists():
            return []
        lines, self._offsets[path] = read_lines(path, self._offsets[path])
        return lines

    def _take(self, line: dict[str, Any]) -> None:
        if "cause" in line:
            self._workers = line["after"]
            self._events.append(words(line))
        elif "validation" in line:
            self._metrics = line["validation"]
        elif "warning" in line:
            self._warnings.append(f"step {line['step']}: {line['warning']['message']}")
        elif "failed_save" in line:
            self._warnings.append(line["failed_save"])
        else:
            self._last = line
            self._workers = line.get("workers", self._workers)
            self._times.append(line["step_seconds"])

    def _progress(self) -> Progress:
        step, steps = int(self._last.get("step", 0)), self._spec.train.steps
        seconds = median(self._times) if self._times else 0.0
        return Progress(
            self._phase,
            step,
            steps,
            self._last.get("loss"),
            self._metrics,
            self._workers,
            self._spec.batch.size / seconds if seconds else 0.0,
            (steps - step) * seconds if seconds else None,
            tuple(self._warnings),
            tuple(self._events),
        )
