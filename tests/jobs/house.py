"""A real `raydml serve` with a Ray of its own, whose processes a test may kill, and an owner who does not give up."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
import numpy as np

from raydml.jobs import marked
from raydml.jobs.local_ray import LocalRay
from raydml.jobs.states import TERMINAL

PATIENCE = 900.0  # seconds for anything at all, on a machine that is busy


def tiny_spec(home: Path, name: str = "tiny", **changes: Any) -> dict[str, Any]:
    """A job of a few seconds, over data that it writes below home."""
    path = home / "data" / "tiny.npz"  # below the folder that a server reads data from
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(0)
        labels = np.repeat(np.arange(20), 8)
        inputs = generator.random((20, 8, 8))[labels] * 200 + generator.random((160, 8, 8)) * 50
        np.savez(path, inputs=inputs.astype(np.uint8), labels=labels)
    return {
        "name": name,
        "seed": 3,
        "data": {"kind": "arrays", "path": str(path), "image_size": 8, "grayscale": True},
        "batch": {"classes": 8, "samples": 4, "virtual_workers": 8},
        "model": {"backbone": {"kind": "mlp", "hidden": [32], "dropout": 0.1}, "dimension": 8},
        "loss": {"kind": "multi_similarity"},
        "parallel": {"workers": {"min": 1, "max": 2, "cpus": 0.5}},
        "train": {"steps": 120, "evaluate_every": 60, "checkpoint_every": 10},
    } | changes


class House:
    """Enter it for a server that answers; `kill` one of its processes, and it comes back."""

    def __init__(self, home: Path, *options: str) -> None:
        self.home, self._options = home, options
        self.ray = LocalRay(home, 2)
        self.followed: dict[str, list[dict[str, Any]]] = {}  # the events of each acknowledged job, as they came
        self.log = home / "server.log"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self._client = httpx2.Client(base_url=self.url, timeout=60)

    def __enter__(self) -> Self:
        self.home.mkdir(parents=True, exist_ok=True)
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._process.poll() is None:
                self._process.terminate()
                self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            self.ray.end()
            self._client.close()

    def start(self) -> None:
        """`raydml serve`, on the same port each time."""
        self.until(self._is_free, "the port is free")  # what the last one started may be about to end
        command = [sys.executable, "-c", "from raydml.cli import main; main()", "serve"]
        command += ["--port", self.url.rpartition(":")[2], "--set", "cpus=2", *self._options]
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                command, stderr=log, env={**os.environ, "RAYDML_HOME": str(self.home)}, cwd=Path(__file__).parents[2]
            )
        self.until(lambda: self._answers(), "the server answers")

    def ask(self, method: str, path: str, **more: Any) -> httpx2.Response:
        """The answer, however often the server dies meanwhile: the key makes the request one."""
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        until = time.monotonic() + PATIENCE
        while True:
            try:
                answer = self._client.request(method, path, headers=headers, **more)
                if answer.status_code not in (429, 503) and "in-progress" not in answer.text:
                    return answer
            except httpx2.TransportError:
                pass
            assert time.monotonic() < until, f"{method} {path} was not answered:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.1)

    def submit(self, spec: dict[str, Any], **more: Any) -> str:
        """The id of a job that was acknowledged, and is followed from now on."""
        answer = self.ask("POST", "/v1/jobs", json={"spec": spec, **more})
        assert answer.status_code == 201, answer.text
        job = str(answer.json()["id"])
        self.followed[job] = []
        return job

    def follow(self) -> int:
        """Take every new event of every job, each right behind the one before; how many there are by now."""
        for job, known in list(self.followed.items()):  # another thread may submit one
            page = self.ask("GET", f"/v1/jobs/{job}/events", params={"after": len(known), "limit": 500})
            assert page.status_code == 200, page.text
            for event in page.json()["items"]:
                known.append(event)
                assert event["seq"] == len(known), (job, event)
        return sum(map(len, self.followed.values()))

    def seen(self, job: str, type: str) -> int:
        """How many events of a type came so far."""
        return sum(event["type"] == type for event in self.followed[job])

    def states(self, job: str) -> list[str]:
        return [event["data"]["to"] for event in self.followed[job] if event["type"] == "state"]

    def over(self, job: str) -> bool:
        return any(state in TERMINAL for state in self.states(job))

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for it."""
        until = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < until, f"{what}: it did not come to that\n{self.log.read_text()[-3000:]}"
            time.sleep(0.3)

    def wait(self, job: str, condition: Callable[[], bool], what: str) -> None:
        """Follow until it holds, or the job is over."""

        def holds() -> bool:
            self.follow()
            return condition() or self.over(job)

        self.until(holds, f"{job}: {what}")

    def kill(self, whom: str) -> bool:
        """`kill -9` one process; False where there is none of the kind now. A keeper that is gone is started again."""
        if whom == "keeper":
            self._process.kill()
            self._process.wait()
            self.start()
            return True
        found = self.pids(whom)
        for pid in found[:1]:
            os.kill(pid, signal.SIGKILL)
        return bool(found)

    def pids(self, whom: str) -> list[int]:
        """The living processes of this kind."""
        if whom in ("api", "supervisor"):
            wanted = "api.supervise" if whom == "supervisor" else "multiprocessing.spawn"
            return [pid for pid in _children(self._process.pid) if wanted in _words(pid)]
        part = {"driver": "raydml.jobs.attempt", "head": "gcs_server", "raylet": "raylet/raylet"}[whom]
        return [each.pid for each in marked.bearing(self.ray.mark) if any(part in word for word in each.arguments[:3])]

    def _is_free(self) -> bool:
        try:
            socket.create_server(("127.0.0.1", int(self.url.rpartition(":")[2]))).close()
        except OSError:
            return False
        return True

    def _answers(self) -> bool:
        assert self._process.poll() is None, self.log.read_text()[-3000:]
        try:
            return self._client.get("/livez").status_code == 200
        except httpx2.TransportError:
            return False


def _children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()] + [
            int(each)
            for task in Path(f"/proc/{pid}/task").iterdir()
            if int(task.name) != pid
            for each in (task / "children").read_text().split()
        ]
    except OSError:
        return []


def _words(pid: int) -> str:
    try:
        return re.sub("\0", " ", Path(f"/proc/{pid}/cmdline").read_text())
    except OSError:
        return ""
