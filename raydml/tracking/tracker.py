"""What a tracker has to do, and the facts of a run that it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from raydml.tracking.points import Point


@dataclass(frozen=True)
class Facts:
    """Of a run: its name and a key that no other run has, its folder and home, its spec flat: `train.steps` -> 2000."""

    name: str
    key: str
    folder: Path
    home: Path
    spec: Mapping[str, Any]


class Tracker(Protocol):
    """One tracked run, new or continued. Every method may raise whatever it likes, or not return."""

    def log(self, points: Sequence[Point]) -> None:
        """Keep these; what was kept by an earlier call stays."""

    def end(self, state: str) -> None:
        """The run is succeeded, failed or interrupted; one that was interrupted may be continued."""
