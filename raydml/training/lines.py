"""JSON values in, one line each at the end of a file; whole lines out, from any offset on."""

from __future__ import annotations

import json
import os
from collections import deque
from pathlib import Path
from typing import Any

from raydml.errors import ResourceError
from raydml.files import append_line

_WAITING = 10_000  # lines; the oldest go first


class Lines:
    """A file of JSON lines with one writer. Lines that a full disk refuses wait in memory and go before the next."""

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        self.path, self._durable = path, durable
        self._waiting: deque[str] = deque(maxlen=_WAITING)

    def append(self, value: dict[str, Any]) -> None:
        """Write one line, or keep it for later."""
        self._waiting.append(json.dumps(value))
        self.flush()

    def flush(self) -> None:
        """Write what waits, as far as the disk takes it."""
        try:
            while self._waiting:
                append_line(self.path, self._waiting[0], durable=self._durable)
                self._waiting.popleft()
        except ResourceError:
            return

    def read(self) -> list[dict[str, Any]]:
        """Every whole line; none where there is no file."""
        return read_lines(self.path)[0] if self.path.exists() else []


def read_lines(path: Path, start: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Complete JSON lines of a file from an offset in bytes on, and the offset behind them.

    A line that a kill cut short is passed over.
    """
    with path.open("rb") as file:
        file.seek(start, os.SEEK_SET)
        complete, newline, _ = file.read().rpartition(b"\n")
    values = map(_value, complete.splitlines())
    return [value for value in values if value is not None], start + len(complete) + len(newline)


def _value(line: bytes) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return value
