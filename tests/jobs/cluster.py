"""A cluster that runs nothing: its processes live, work and die when the test says so, and write what real ones do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raydml.files import write_json
from raydml.jobs.launcher import Launch, Process, Sight, Unreachable, submission_id
from raydml.jobs.workplace import Workplace


class FakeCluster:
    """A launcher. `processes` is what Ray would know; `down` is a head that nobody can reach."""

    def __init__(self, cpus: float = 4.0) -> None:
        self.cpus = cpus
        self.processes: dict[str, Process] = {}
        self.down = False
        self.launched: list[str] = []

    def look(self) -> Sight:
        self._reach()
        return Sight(dict(self.processes), self.cpus)

    def submit(self, launch: Launch) -> None:
        self._reach()
        if launch.submission_id not in self.processes:
            self.processes[launch.submission_id] = "alive"
            self.launched.append(launch.submission_id)

    def end(self, submission_id: str) -> None:
        self._reach()
        if submission_id in self.processes:
            self.processes[submission_id] = "gone"

    def mend(self) -> None:
        self.down = False

    def close(self) -> None:
        pass

    def crash(self) -> None:
        """The head dies, with every process and all that it knew."""
        self.processes.clear()
        self.down = True

    def _reach(self) -> None:
        if self.down:
            raise Unreachable("the head is down")


class FakeAttempt:
    """What the process of a job's attempt would do."""

    def __init__(self, cluster: FakeCluster, home: Path, job: str, attempt: int = 1) -> None:
        self.cluster, self.place = cluster, Workplace(home, job, attempt)
        self.id = submission_id(job, attempt)

    @property
    def alive(self) -> bool:
        return self.cluster.processes.get(self.id) == "alive"

    def begin(self, workers: int | None = None) -> None:
        """As `raydml.run` begins: old requests are forgotten, the group forms."""
        order = self.place.order()
        limits = order["spec"]["parallel"]["workers"]
        (self.place.run / "stop").unlink(missing_ok=True)
        self.place.write_started(list(range(limits["min"], limits["max"] + 1)), (limits["min"], limits["max"]))
        self.change(workers or order["workers"], "start")

    def change(self, workers: int, cause: str = "resize") -> None:
        """The group has this many workers from now on."""
        line = {"time": 1.0, "step": 0, "cause": cause, "before": 0, "after": workers, "members": [], "down": 0.0}
        self._append("events.jsonl", line | {"lost": 0, "note": ""})

    def step(self, step: int, **more: Any) -> None:
        self._append("metrics.jsonl", {"step": step, "loss": 1.0 / step, "workers": 1, "time": float(step)} | more)

    def checkpoint(self, step: int) -> None:
        folder = self.place.run / "checkpoints" / f"step-{step:08d}"
        write_json(folder / "checkpoint.json", {"step": step, "state_sha256": f"{step:064d}"})

    def end(self, outcome: str, kind: str = "", message: str = "", result: dict[str, Any] | None = None) -> None:
        self.place.write_ended(outcome, kind, message, result)
        self.cluster.processes[self.id] = "gone"

    def die(self) -> None:
        self.cluster.processes[self.id] = "gone"

    @property
    def asked_to_stop(self) -> bool:
        return (self.place.run / "stop").exists()

    def _append(self, name: str, line: dict[str, Any]) -> None:
        self.place.run.mkdir(parents=True, exist_ok=True)
        with (self.place.run / name).open("a") as file:
            file.write(json.dumps(line) + "\n")
