"""On Ray: workers are killed, replaced, added and taken away while a run trains; the bits are the undisturbed run's."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

import raydml
from raydml.errors import SpecError
from raydml.run import Run, find_run
from tests.distributed.harness import write_images
from tests.ray.commands import document

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240), pytest.mark.filterwarnings("default")]

STEPS = 1500
TRAIN = {"steps": STEPS, "evaluate_every": 500, "checkpoint_every": 100}


@pytest.fixture(scope="module", autouse=True)
def shared_ray() -> Iterator[None]:
    scratch = tempfile.mkdtemp(prefix="raydml-test-")  # a short path: Ray puts sockets below it
    ray.init("local", num_cpus=2, _temp_dir=scratch, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
    shutil.rmtree(scratch, ignore_errors=True)


def job(data: Path, name: str, **workers: Any) -> dict[str, Any]:
    model = {"backbone": {"kind": "mlp", "hidden": [512, 512], "dropout": 0.1}, "dimension": 16}
    return document(data, name, train=TRAIN, model=model, parallel={"workers": {"cpus": 0.5, **workers}})


class Training:
    """`raydml.train` in a thread."""

    def __init__(self, spec: dict[str, Any], home: Path) -> None:
        self.folder = home / "runs" / spec["name"]
        self.run: Run | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._train, args=(spec,))
        self._thread.start()

    def _train(self, spec: dict[str, Any]) -> None:
        try:
            self.run = raydml.train(spec)
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

    def finish(self) -> Run:
        self._thread.join(150)
        assert self.run is not None, self.error
        return self.run


def group_worker(events: list[dict[str, Any]]) -> int:
    """Process of the worker that Ray Train placed: its name ends with it."""
    (name,) = {name for event in events for name in event["members"] if name.startswith("group-")}
    return int(name.rpartition("-")[2])


def test_a_killed_worker_is_replaced_and_a_resized_run_shrinks_without_a_trace(tmp_path: Path, home: Path) -> None:
    data = write_images(tmp_path)
    training = Training(job(data, "disturbed", min=1, max=2), home)
    training.wait(lambda events: any(event["after"] == 2 for event in events), "the second worker")
    os.kill(group_worker(training.events()), signal.SIGKILL)
    training.wait(lambda events: events[-1]["cause"] == "join" and events[-1]["before"] == 1, "Ray's replacement")
    with pytest.raises(SpecError, match="1 to"):
        raydml.resize("disturbed", 3)
    raydml.resize("disturbed", 1)
    training.wait(lambda events: events[-1]["cause"] == "resize", "the smaller group")
    run = training.finish()
    assert [event["after"] for event in run.events] == [1, 2, 1, 2, 1]
    assert all(event["lost"] == 0 for event in run.events)
    undisturbed = raydml.train(job(data, "undisturbed", min=1, max=1))
    assert [event["cause"] for event in undisturbed.events] == ["start"]
    assert run.facts["state_sha256"] == undisturbed.facts["state_sha256"]
    assert run.sha256 == undisturbed.sha256 and run.metrics == undisturbed.metrics
