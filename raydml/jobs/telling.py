"""A run's progress in, lines of its attempt's log out: `key=value`, one for each thing that happened."""

from __future__ import annotations

from collections.abc import Callable
from typing import TextIO

import structlog
from structlog.typing import FilteringBoundLogger

from raydml.progress import Progress

BETWEEN = 10.0  # seconds between two lines that only tell how far the run is


def log_of(job: str, attempt: int, stream: TextIO) -> FilteringBoundLogger:
    """A log whose lines name the job and the attempt; each is written at once."""
    log: FilteringBoundLogger = structlog.wrap_logger(
        structlog.WriteLogger(stream),
        processors=[
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.LogfmtRenderer(key_order=["time", "job", "attempt", "event"], drop_missing=True),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(0),
        job=job,
        attempt=attempt,
    )
    return log


class Telling:
    """For `run.train(listen=...)`: a line where the phase or the measures change, and every ten seconds."""

    def __init__(self, log: FilteringBoundLogger, clock: Callable[[], float]) -> None:
        self._log, self._clock = log, clock
        self._last: tuple[object, ...] = ()
        self._next = 0.0

    def __call__(self, news: Progress) -> None:
        for event in news.events:
            self._log.info("workers", what=event)
        for warning in news.warnings:
            self._log.warning("warning", what=warning)
        now, state = self._clock(), (news.phase, news.metrics)
        if state != self._last or now >= self._next:
            self._last, self._next = (news.phase, dict(news.metrics)), now + BETWEEN
            loss = {} if news.loss is None else {"loss": f"{news.loss:.6g}"}
            measures = {name: f"{value:.4g}" for name, value in news.metrics.items()}
            self._log.info(news.phase, step=news.step, steps=news.steps, workers=news.workers, **loss, **measures)
