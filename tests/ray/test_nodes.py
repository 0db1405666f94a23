"""A run over nodes that arrive, drain and die: nobody who stays restarts, and the bits are those of one process."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from raydml.errors import Interrupted
from raydml.training.record import RunRecord
from tests.distributed.harness import write_images
from tests.ray.commands import document
from tests.ray.machines import Machines
from tests.ray.training import Training, state_after

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.filterwarnings("default")]


def test_a_run_outlives_its_nodes(machines: Machines, tmp_path: Path, home: Path) -> None:
    train = {"steps": 10**6, "evaluate_every": 0, "checkpoint_every": 500}
    spec = document(
        write_images(tmp_path), "nodes", train=train, parallel={"workers": {"min": 1, "max": 3}, "patience": 10}
    )
    training = Training(spec, home)
    training.wait(lambda events: events[-1]["after"] == 2 if events else False, "two workers on two nodes")
    third = machines.arrive()
    training.wait(lambda events: events[-1]["after"] == 3, "a worker on the node that arrived")
    machines.drain(third)
    training.wait(lambda events: events[-1]["cause"] == "drain", "it to leave the drained node")
    machines.kill(third)
    killed = next(iter(machines.nodes))
    machines.kill(killed)
    training.wait(lambda events: events[-1]["after"] == 1, "the node's death to be seen")
    time.sleep(1.0)
    RunRecord(training.folder).request_stop()
    assert isinstance(training.end(), Interrupted)
    assert all(event["lost"] == 0 for event in training.events())
    saved = training.saved()
    assert saved["step"] > training.events()[-1]["step"]
    assert saved["state_sha256"] == state_after(spec, saved["step"], tmp_path)
