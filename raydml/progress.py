"""A run's metrics file -> progress values for whoever watches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from raydml.spec import JobSpec
from raydml.training.record import RunRecord, read_lines


@dataclass(frozen=True)
class Progress:
    """How far a run is. `phase` is starting, training or stopping; rates are of the last 20 steps.

    `warnings` are those of broken rules since the last call.
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


class Watch:
    """Reads what workers log and tells one listener; a call of `tick` reads what is new."""

    def __init__(self, record: RunRecord, spec: JobSpec, listen: Callable[[Progress], None] | None) -> None:
        self._path, self._spec, self._listen = record.metrics_path, spec, listen
        self._offset = self._path.stat().st_size if self._path.exists() else 0
        self._last: dict[str, Any] = {}
        self._metrics: dict[str, float] = {}
        self._times: deque[float] = deque(maxlen=20)
        self._phase = "training"
        self._warnings: list[str] = []

    def say(self, phase: str, step: int | None) -> None:
        """Tell of a phase that no log line announces."""
        self._phase = phase if phase == "stopping" else "training"
        if self._listen:
            at = step if step is not None else int(self._last.get("step", 0))
            self._listen(Progress(phase, at, self._spec.train.steps))

    def tick(self) -> None:
        """Tell of the newest of everything logged since the last call."""
        if self._listen is None or not self._path.exists():
            return
        lines, self._offset = read_lines(self._path, self._offset)
        for line in lines:
            self._take(line)
        if lines:
            self._listen(self._progress())
            self._warnings.clear()

    def _take(self, line: dict[str, Any]) -> None:
        if "validation" in line:
            self._metrics = line["validation"]
        elif "warning" in line:
            self._warnings.append(f"step {line['step']}: {line['warning']['message']}")
        else:
            self._last = line
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
            int(self._last.get("workers", 0)),
            self._spec.batch.size / seconds if seconds else 0.0,
            (steps - step) * seconds if seconds else None,
            tuple(self._warnings),
        )
