"""Log lines of the server and its libraries: one per event on stderr, `key=value`, with the request's id."""

from __future__ import annotations

import logging
import os
import sys

import structlog
from structlog.typing import EventDict, Processor

from raydml.jobs.tokens import without_secrets


def configure_logging(level: str) -> None:
    """Send all log lines of this process through one format; `level` as in the settings."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _with_process,
    ]
    written: list[Processor] = [
        structlog.processors.format_exc_info,
        harmless,
        structlog.processors.LogfmtRenderer(key_order=["time", "level", "event", "request"], drop_missing=True),
    ]
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, *written],
        logger_factory=structlog.WriteLoggerFactory(Stderr()),  # type: ignore[arg-type]
        wrapper_class=structlog.make_filtering_bound_logger(number),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)  # of uvicorn and other libraries
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *written],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    logging.getLogger("uvicorn.access").disabled = True  # the envelope's line says more


class Stderr:
    """Whatever sys.stderr is when a line is written: loggers outlive one that a caller has replaced."""

    def write(self, text: str) -> int:
        """As the stream does."""
        return sys.stderr.write(text)

    def flush(self) -> None:
        """As the stream does."""
        sys.stderr.flush()


def harmless(_: object, __: str, event: EventDict) -> EventDict:
    """The event without secrets and control characters, whoever wrote them; tracebacks keep their lines."""
    lines = str(event.pop("exception", "")).split("\n")
    shown = dict(without_secrets(dict(event)))
    if lines != [""]:
        shown["exception"] = "\n".join(map(without_secrets, lines))
    return shown


def _with_process(_: object, __: str, event: EventDict) -> EventDict:
    event["process"] = os.getpid()
    return event
