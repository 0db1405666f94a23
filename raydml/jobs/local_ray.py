"""A Ray of one machine that outlives whoever started it: adopted where it lives, started anew where part of it died."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raydml.errors import ResourceError
from raydml.files import write_json
from raydml.jobs import marked

# Programs of a head without which it is of no use, by a part of their command lines.
VITAL = ("gcs/gcs_server", "raylet/raylet", "dashboard/dashboard.py")
CLEARINGS = 100  # times that its scratch folder is removed, until it is gone
STARTING = 300  # seconds that a head may take, on a machine that is busy


class LocalRay:
    """The Ray that belongs to one server's folder. It asks for a token, and its dashboard listens on loopback."""

    def __init__(self, home: Path, cpus: int) -> None:
        if not marked.PROC.is_dir():
            raise ResourceError("a Ray of the server's own needs Linux: give the URL of a cluster (RAY_ADDRESS)")
        self.home, self.cpus = home, cpus
        self._folder = home / "ray"
        self._known = self._folder / "head.json"
        self.mark = hashlib.sha256(str(home).encode()).hexdigest()[:16]
        self._scratch = Path(tempfile.gettempdir()) / f"raydml-{os.getuid()}-{self.mark[:8]}"  # short: sockets below

    @property
    def token(self) -> str:
        """What every request must bear, for as long as the folder is there."""
        path = self._folder / "token"
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._alone():
                if not path.exists():
                    path.touch(0o600)
                    path.write_text(secrets.token_hex(32))
        return path.read_text()

    def url(self) -> str | None:
        """Of its dashboard, while everything vital lives."""
        try:
            head = json.loads(self._known.read_text())
        except FileNotFoundError:
            return None
        alive = all(marked.began_at(pid) == began for pid, began in head["vital"])
        return str(head["url"]) if alive else None

    def ensure(self) -> str:
        """Its URL, after a new start where part of it died: then whatever ran on it is ended first.

        Raises ResourceError where it does not start.
        """
        assert self.token
        with self._alone():
            return self.url() or self._start()

    def end(self) -> None:
        """It and everything that runs on it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            self._end()

    def end_process(self, argument: str) -> None:
        """Processes on it with this word in their command lines, which Ray may have lost sight of."""
        marked.end(self.mark, having=argument)

    def _end(self) -> None:
        self._known.unlink(missing_ok=True)
        for _ in range(CLEARINGS):
            marked.end(self.mark, self._scratch)
            if self._scratch.is_symlink() or not self._scratch.exists() or self._scratch.stat().st_uid != os.getuid():
                return
            shutil.rmtree(self._scratch, ignore_errors=True)  # whose files the dying may still add to
            if self._scratch.exists():
                time.sleep(0.1)

    def _start(self) -> str:
        self._end()
        try:
            self._scratch.mkdir(0o700)
        except FileExistsError:
            raise ResourceError(f"{self._scratch} is not this user's folder: remove it, or set TMPDIR") from None
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--disable-usage-stats"]
        command += ["--port=0", "--dashboard-host=127.0.0.1", "--dashboard-port=0", "--dashboard-agent-listen-port=0"]
        command += ["--include-dashboard=true", "--include-log-monitor=false", f"--num-cpus={self.cpus}"]
        command += [f"--temp-dir={self._scratch}"]
        started = subprocess.run(
            command, env=self._environment(), capture_output=True, text=True, timeout=STARTING, start_new_session=True
        )
        marked.end(self.mark, having="ray.util.client.server")  # another way in, which nobody uses
        found = re.search(r"RAY_API_SERVER_ADDRESS='(http://127\.0\.0\.1:\d+)'", started.stdout)
        processes = list(marked.bearing(self.mark))
        vital = [each for part in VITAL for each in processes if any(part in word for word in each.arguments)]
        if found is None or len(vital) < len(VITAL):
            marked.end(self.mark, self._scratch)
            raise ResourceError(f"Ray does not start here: {(started.stderr or started.stdout)[-2000:].strip()}")
        write_json(self._known, {"url": found[1], "vital": [[each.pid, each.began] for each in vital]})
        return found[1]

    def _environment(self) -> dict[str, str]:
        """Of Ray and all that runs on it: nothing that points to another cluster, no secret of the server's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RAYDML_"))}
        return kept | {
            marked.VARIABLE: self.mark,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._folder / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time starts or ends it."""
        lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)
