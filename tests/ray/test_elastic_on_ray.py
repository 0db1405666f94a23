"""On Ray: workers are killed, replaced and taken away while a run trains; the bits are those of one process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import raydml
from raydml.errors import Interrupted, RunError, SpecError
from raydml.runs import find_run
from raydml.training.record import RunRecord
from tests.distributed.harness import write_images
from tests.ray.commands import document
from tests.ray.training import Training, state_after

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("shared_ray"),
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("default"),
]


def group_worker(events: list[dict[str, Any]]) -> int:
    """Process of the worker that Ray Train placed: its name ends with it."""
    (name,) = {name for event in events for name in event["members"] if name.startswith("group-")}
    return int(name.rpartition("-")[2])


def test_a_killed_worker_is_replaced_and_a_resized_run_shrinks_without_a_trace(tmp_path: Path, home: Path) -> None:
    train = {"steps": 10**6, "evaluate_every": 0, "checkpoint_every": 500}
    workers = {"workers": {"min": 1, "max": 2, "cpus": 0.5}}
    spec = document(write_images(tmp_path), "disturbed", train=train, parallel=workers)
    training = Training(spec, home)
    training.wait(lambda events: any(event["after"] == 2 for event in events), "the second worker")
    os.kill(group_worker(training.events()), signal.SIGKILL)
    training.wait(lambda events: events[-1]["cause"] == "join" and events[-1]["before"] == 1, "Ray's replacement")
    with pytest.raises(SpecError, match="1 to"):
        raydml.resize("disturbed", 3)
    raydml.resize("disturbed", 1)
    training.wait(lambda events: events[-1]["cause"] == "resize", "the smaller group")
    RunRecord(training.folder).request_stop()
    assert isinstance(training.end(), Interrupted)
    events = training.events()
    assert [event["after"] for event in events][-4:] == [2, 1, 2, 1]
    assert all(event["lost"] == 0 for event in events)
    assert training.saved()["step"] > events[-1]["step"]
    assert training.saved()["state_sha256"] == state_after(spec, training.saved()["step"], tmp_path)


MARK = 123.0


class Vectors(Dataset[tuple[torch.Tensor, int]]):
    """Twenty classes of six vectors, one of them marked."""

    def __init__(self) -> None:
        self.targets = torch.arange(20).repeat_interleave(6)
        self.rows = torch.randn(120, 12, generator=torch.Generator().manual_seed(1))
        self.rows[0, 0] = MARK

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.rows[index], int(self.targets[index])


class Deadly(nn.Linear):
    """Kills the process that trains on the marked vector, as one does that is out of memory; slow enough to watch."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            time.sleep(0.005)
            if bool((inputs[:, 0] == MARK).any()):
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(inputs)


def test_a_batch_that_kills_its_workers_stops_the_run_and_is_named(tmp_path: Path, home: Path) -> None:
    spec = document(
        tmp_path,
        "poisoned",
        data={"kind": "custom"},
        batch={"classes": 4, "samples": 4, "virtual_workers": 4},
        model={"backbone": {"kind": "custom"}, "dimension": 4},
        parallel={"workers": {"min": 1, "max": 1, "cpus": 0.5}, "tolerate": {"poison": 2}},
        train={"steps": 10**4, "evaluate_every": 0, "checkpoint_every": 5},
    )
    training = Training(spec, home, dataset=Vectors(), model=Deadly(12, 4))
    error = training.end()
    assert isinstance(error, RunError) and "killed 2 workers" in str(error) and "parallel.tolerate.poison" in str(error)
    # The checkpoint lies up to five steps before the one that kills: only that one's batch holds the marked row.
    assert "0" in str(error).rpartition("Items of the batch: ")[2].split(", "), error
    assert [event["cause"] for event in training.events()].count("restart") >= 1
    assert find_run(training.folder).state == "failed"


class Dying(nn.Linear):
    """Kills every worker that takes it over."""

    def train(self, mode: bool = True) -> Dying:
        if Path("/proc/self/cmdline").read_bytes().startswith(b"ray::"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train(mode)


def test_workers_that_die_before_they_join_stop_the_run(tmp_path: Path, home: Path) -> None:
    spec = document(
        tmp_path,
        "stillborn",
        data={"kind": "custom"},
        model={"backbone": {"kind": "custom"}, "dimension": 4},
        parallel={"workers": {"min": 1, "max": 1, "cpus": 0.5}, "tolerate": {"poison": 2}},
    )
    error = Training(spec, home, dataset=Vectors(), model=Dying(12, 4)).end()
    assert isinstance(error, RunError) and "before they had joined" in str(error)
