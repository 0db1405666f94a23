"""What of a run's membership survives its authority: the last agreed group, and whose turn it is to agree on one."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

from raydml.errors import RunExists
from raydml.files import write_json


@dataclass(frozen=True)
class Record:
    """The last view that may have been handed out: its epoch (0: none), its members with the epochs in which each
    joined, in rank order, and the step it went on from; `token` counts the authorities so far."""

    epoch: int = 0
    step: int = 0
    joined: tuple[tuple[str, int], ...] = field(default=())
    token: int = 0


class Ledger(Protocol):
    """Durable, and written by one authority at a time: the one that took it last."""

    def take(self) -> Record:
        """Become the only writer: gives the last record, with a new token."""

    def write(self, record: Record) -> None:
        """Make the record durable; RunExists if another authority has taken the ledger since."""

    def holds(self, token: int) -> bool:
        """Whether nobody has taken the ledger since that token was given."""


@dataclass
class MemoryLedger:
    """A ledger that outlives its authorities, not its process."""

    record: Record = field(default_factory=Record)

    def take(self) -> Record:
        """As `Ledger.take`."""
        self.record = replace(self.record, token=self.record.token + 1)
        return self.record

    def write(self, record: Record) -> None:
        """As `Ledger.write`."""
        if not self.holds(record.token):
            raise _taken(record.token, self.record.token)
        self.record = record

    def holds(self, token: int) -> bool:
        """As `Ledger.holds`."""
        return self.record.token == token


@dataclass(frozen=True)
class FileLedger:
    """A ledger in a JSON file, replaced whole under a lock of the file beside it (flock: one machine, or a file system
    that has it)."""

    path: Path

    def take(self) -> Record:
        """As `Ledger.take`."""
        with self._locked():
            last = self._read()
            record = replace(last, token=last.token + 1)
            write_json(self.path, asdict(record))
        return record

    def write(self, record: Record) -> None:
        """As `Ledger.write`; ResourceError leaves the last record."""
        with self._locked():
            if not self.holds(record.token):
                raise _taken(record.token, self._read().token)
            write_json(self.path, asdict(record))

    def holds(self, token: int) -> bool:
        """As `Ledger.holds`: one read of a small file."""
        return self._read().token == token

    def _read(self) -> Record:
        if not self.path.exists():
            return Record()
        kept = json.loads(self.path.read_text(encoding="utf-8"))
        joined = tuple((name, epoch) for name, epoch in kept["joined"])
        return Record(kept["epoch"], kept["step"], joined, kept["token"])

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path.with_name(f"{self.path.name}.lock"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _taken(mine: int, current: int) -> RunExists:
    return RunExists(
        f"authority {mine} of this run was replaced by authority {current}: stop this driver, the other one goes on",
        mine=mine,
        current=current,
    )
