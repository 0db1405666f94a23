"""A command in; its process out, started again whenever it dies, for as long as this process lives."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

import structlog

from api.settings import Settings

log = structlog.get_logger()
PAUSE = 1.0  # seconds before a process that died is started again


def supervised(settings: Settings) -> Callable[[], None]:
    """Start the process that brings jobs to their end, and keep it alive; what comes back stops it in good order."""
    supervisor = Kept([sys.executable, "-m", "api.supervise"], settings.model_dump_json())
    supervisor.start()
    return lambda: supervisor.stop(2 * settings.shutdown_seconds)


class Kept:
    """A process that reads `told` on stdin, and sees the end of stdin when its keeper dies."""

    def __init__(self, command: Sequence[str], told: str) -> None:
        self._command, self._told = command, told
        self._stopping = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def start(self) -> None:
        """Start it, and see that it goes on."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Have it end in good order, or end it after this long."""
        self._stopping.set()
        if (process := self._process) is not None:
            process.terminate()
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
        self._thread.join(seconds)

    def _keep(self) -> None:
        while not self._stopping.is_set():
            with subprocess.Popen(self._command, stdin=subprocess.PIPE, text=True) as process:
                self._process = process
                assert process.stdin is not None
                try:
                    process.stdin.write(self._told + "\n")
                    process.stdin.flush()
                except BrokenPipeError:
                    pass  # dead already
                code = process.wait()
            if not self._stopping.is_set():
                log.error("process_died", command=" ".join(self._command), code=code)
                self._stopping.wait(PAUSE)
