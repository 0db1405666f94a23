"""`raydml.train` in a thread, watched through the run's folder; and what one undisturbed process would have."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import raydml
from raydml.parallel import Group
from raydml.runs import find_run
from raydml.spec import JobSpec
from raydml.training.worker import Job, Worker


class Training:
    """`raydml.train` in a thread."""

    def __init__(self, spec: dict[str, Any], home: Path, **options: Any) -> None:
        self.folder = home / "runs" / spec["name"]
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._train, args=(spec, options))
        self._thread.start()

    def _train(self, spec: dict[str, Any], options: dict[str, Any]) -> None:
        try:
            raydml.train(spec, **options)
        except BaseException as error:
            self.error = error

    def events(self) -> list[dict[str, Any]]:
        return find_run(self.folder).events if (self.folder / "run.json").exists() else []

    def wait(self, until: Callable[[list[dict[str, Any]]], bool], what: str) -> None:
        deadline = time.monotonic() + 120
        while not until(self.events()):
            assert self._thread.is_alive(), f"the run ended before {what}: {self.error}, {self.events()}"
            assert time.monotonic() < deadline, f"{what} did not come: {self.events()}"
            time.sleep(0.02)

    def end(self) -> BaseException | None:
        self._thread.join(120)
        assert not self._thread.is_alive()
        return self.error

    def saved(self) -> dict[str, Any]:
        """What the newest checkpoint says of itself."""
        newest = max((self.folder / "checkpoints").glob("step-*"))
        found: dict[str, Any] = json.loads((newest / "checkpoint.json").read_text())
        return found


def state_after(spec: dict[str, Any], step: int, folder: Path) -> str:
    """SHA-256 of the state of one undisturbed process after that many steps."""
    checked = JobSpec.model_validate(spec)
    worker = Worker(Job(checked, folder, folder, None), Group(0, 1, 8), torch.device("cpu"))
    worker.trainer.run(step, lambda report: True)
    return worker.trainer.state.digest()
