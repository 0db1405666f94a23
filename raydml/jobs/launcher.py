"""What the supervisor needs of whatever runs attempts: a look at all of them, a start, an end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

Process = Literal["alive", "gone"]


@dataclass(frozen=True)
class Sight:
    """Everything that can be seen at a moment: submissions by id, and the CPUs there are for workers.

    A submission that is not listed was never made, or was forgotten when its cluster died.
    """

    processes: Mapping[str, Process]
    cpus: float


@dataclass(frozen=True)
class Launch:
    """One attempt to run: `python -m raydml.jobs.attempt --job JOB --attempt NUMBER --home HOME`, and nothing else."""

    submission_id: str
    job: str
    attempt: int


class Unreachable(Exception):
    """Nobody can say now what runs: whatever did may go on."""


class Launcher(Protocol):
    """Runs attempts. Every method may raise Unreachable; all of them may be repeated."""

    def look(self) -> Sight:
        """What there is."""

    def submit(self, launch: Launch) -> None:
        """Start one; an id that was submitted before is not started again."""

    def end(self, submission_id: str) -> None:
        """End a process: a signal to terminate, and soon one to kill. One that is gone or unknown stays so."""

    def mend(self) -> None:
        """After Unreachable: what can be done, such as to start a cluster of one's own anew. May take a while."""

    def close(self) -> None:
        """Give back connections; what runs goes on."""


def submission_id(job: str, attempt: int) -> str:
    """The same for the same attempt, whoever asks: a second submit is refused rather than started."""
    return f"{job}-a{attempt}"
