"""Lines of a run's metrics in; named numbers at a count of samples out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydml.training.record import read_lines

_BESIDE = ("step", "time")


@dataclass(frozen=True)
class Point:
    """Numbers by name after so many samples: steps times the rows of the global batch. `time`: seconds since 1970."""

    samples: int
    time: float
    values: Mapping[str, float]


@dataclass(frozen=True, order=True)
class Position:
    """Behind which line of the metrics: the step, and how many lines of that step."""

    step: int = 0
    lines: int = 0


class Feed:
    """What is new in the metrics of a run behind a position. A file that was replaced is read again from its start."""

    def __init__(self, path: Path, rows: int, position: Position) -> None:
        """`rows` are those of one global batch."""
        self.position = position
        self._path, self._rows = path, rows
        self._inode, self._offset = 0, 0
        self._at = Position()

    def read(self) -> list[Point]:
        """Points behind the position, which is then behind them. A step that was taken again is not told again."""
        if not self._path.exists():
            return []
        status = self._path.stat()
        if (status.st_ino, self._offset) != (self._inode, min(self._offset, status.st_size)):
            self._inode, self._offset, self._at = status.st_ino, 0, Position()
        lines, self._offset = read_lines(self._path, self._offset)
        return [point(line, self._rows) for line in self._new(lines)]

    def _new(self, lines: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
        for line in lines:
            again = line["step"] == self._at.step
            self._at = Position(line["step"], self._at.lines + 1 if again else 1)
            if self._at > self.position:
                self.position = self._at
                yield line


def point(line: Mapping[str, Any], rows: int) -> Point:
    """The numbers of one line; those of a validation under `validation/`."""
    numbers = {name: value for name, value in line.items() if name not in _BESIDE}
    numbers |= {f"validation/{name}": value for name, value in line.get("validation", {}).items()}
    values = {name: float(value) for name, value in numbers.items() if isinstance(value, int | float)}
    return Point(line["step"] * rows, line["time"], values)
