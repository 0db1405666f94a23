"""Processes that bear a mark in their environment: found and ended, whoever started them and whatever they became.

Ray's agents write their title over part of the environment that others see: those are known by the files that they
hold open.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
VARIABLE = "RAYDML_RAY"  # children inherit it
_TITLE = "ray::"


@dataclass(frozen=True)
class Process:
    """A process and when it began, in ticks since the machine did: the two name it for ever."""

    pid: int
    began: int
    arguments: tuple[str, ...]


def bearing(mark: str, within: Path | None = None) -> Iterator[Process]:
    """Every living process whose environment has the mark, or that has a title of Ray's and a file `within` open."""
    wanted = f"{VARIABLE}={mark}".encode()
    for folder in PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or somebody else's
            words = (folder / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
            marked = wanted in (folder / "environ").read_bytes().split(b"\0")
            if marked or (within is not None and words[0].startswith(_TITLE) and _holds(folder, within)):
                began = began_at(int(folder.name))
                if began is not None:
                    yield Process(int(folder.name), began, tuple(words))


def _holds(process: Path, within: Path) -> bool:
    """Whether it has a file below this folder open, which may be removed by now."""
    for link in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if os.readlink(link).startswith(f"{within}/"):
                return True
    return False


def began_at(pid: int) -> int | None:
    """When the process of this number began; None where there is none, or it is a zombie."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def end(mark: str, within: Path | None = None, having: str | None = None) -> None:
    """Kill all of them, of those with the argument `having` where it is given, until none is left."""
    while True:
        found = [each for each in bearing(mark, within) if having is None or having in each.arguments]
        if not found:
            return
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.02)
