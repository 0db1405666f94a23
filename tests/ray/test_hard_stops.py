"""A second Ctrl-C, and a driver that is killed: nothing goes on running, and the next run ends with the same bits."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import yaml

from tests.distributed.harness import write_images
from tests.ray.commands import command, document, wait_for_step

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

LONG = {"steps": 600, "evaluate_every": 200, "checkpoint_every": 50}


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(document(write_images(tmp_path), "stopped", train=LONG)))
    return path


def scratch_folders() -> set[Path]:
    return set(Path("/tmp").glob("raydml-ray-*"))


def wait_until_nothing_moves(folder: Path) -> int:
    """The last step in the run's record, once it has not grown for two seconds."""
    deadline = time.monotonic() + 30
    path, size = folder / "metrics.jsonl", -1
    while time.monotonic() < deadline:
        if path.stat().st_size == size:
            return int(json.loads(path.read_text().splitlines()[-1])["step"])
        size = path.stat().st_size
        time.sleep(2)
    raise AssertionError("workers go on without their driver")


def finish(spec: Path, home: Path, *options: str) -> dict[str, object]:
    process = command(spec, home, *options)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    return json.loads(output)  # type: ignore[no-any-return]


def test_a_second_ctrl_c_stops_at_once(spec: Path, home: Path) -> None:
    before = scratch_folders()
    process = command(spec, home)
    folder = home / "runs" / "stopped"
    wait_for_step(folder, 20, process)
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode in (130, -signal.SIGINT), errors
    assert json.loads((folder / "run.json").read_text())["state"] == "interrupted"
    assert wait_until_nothing_moves(folder) < LONG["steps"]
    assert finish(spec, home)["state"] == "succeeded"
    assert scratch_folders() <= before


def test_a_run_whose_driver_was_killed_goes_on_to_the_same_bits(spec: Path, home: Path, tmp_path: Path) -> None:
    before = scratch_folders()
    process = command(spec, home)
    folder = home / "runs" / "stopped"
    wait_for_step(folder, 120, process)
    process.kill()
    process.communicate(timeout=30)
    assert wait_until_nothing_moves(folder) < LONG["steps"]
    resumed = finish(spec, home, "--set", "parallel.workers=1")
    assert [entry["workers"] for entry in resumed["world_size_history"]] == [2, 1]  # type: ignore[attr-defined]
    assert scratch_folders() <= before, "the killed driver's scratch folder went with the next run"
    assert finish(spec, tmp_path / "elsewhere")["state_sha256"] == resumed["state_sha256"]
