"""The process of `api.checker`, and the one that an application which has ended left to the next one."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import threading
from contextlib import suppress

_lock = threading.Lock()
_left: list[Looker] = []


class Looker:
    """One process; for one thread at a time, but for `end`. It ends with this process, too: its stdin does."""

    def __init__(self) -> None:
        self.world = _world()
        self._loaded = False
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "api.checker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def wait(self) -> None:
        """Until it has loaded everything. Raises EOFError where it dies."""
        if not self._loaded:
            self._line()
            self._loaded = True

    def ask(self, line: bytes) -> bytes:
        """Its answer. Raises EOFError where it dies over it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):  # dead, or ended by another thread
            raise EOFError from None
        return self._line()

    def leave(self) -> None:
        """Keep it for the next application; one is enough."""
        with _lock:
            kept = self.alive and self._loaded and not _left
            if kept:
                _left.append(self)
        if not kept:
            self.end()

    def end(self) -> None:
        """End it; whoever waits for an answer has none."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()  # when whoever reads has seen the end

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        try:
            said = self._process.stdout.readline()
        except ValueError:  # ended by another thread
            said = b""
        if not said.endswith(b"\n"):
            raise EOFError
        return said


def looker_at_hand() -> Looker:
    """The one that was left, where it finds the same code as a new one would; or a new one."""
    with _lock:
        looker = _left.pop() if _left else None
    if looker is not None and looker.alive and looker.world == _world():
        return looker
    if looker is not None:
        looker.end()
    return Looker()


def _world() -> tuple[str, str | None]:
    """What decides which code it finds."""
    return os.getcwd(), os.environ.get("PYTHONPATH")


@atexit.register
def _end_left() -> None:
    while _left:
        _left.pop().end()
