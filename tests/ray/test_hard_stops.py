"""A second Ctrl-C, a driver or a part of its Ray that is killed: nothing goes on, the next run has the same bits."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

import raydml
from tests.distributed.harness import write_images
from tests.ray.commands import command, document, wait_for_step

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

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
    deadline = time.monotonic() + 120
    path, size = folder / "metrics.jsonl", -1
    while time.monotonic() < deadline:
        if path.stat().st_size == size:
            return int(json.loads(path.read_text().splitlines()[-1])["step"])
        size = path.stat().st_size
        time.sleep(2)
    raise AssertionError("workers go on without their driver")


@contextmanager
def started(spec: Path, home: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`raydml train` as a user runs it; whatever happens, it does not go on after the block."""
    with command(spec, home, *options) as process:
        try:
            yield process
        finally:
            process.kill()


def finish(spec: Path, home: Path, *options: str) -> dict[str, object]:
    with started(spec, home, *options) as process:
        output, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    return json.loads(output)  # type: ignore[no-any-return]


def test_a_second_ctrl_c_stops_at_once(spec: Path, home: Path) -> None:
    before = scratch_folders()
    folder = home / "runs" / "stopped"
    with started(spec, home) as process:
        wait_for_step(folder, 20, process)
        os.killpg(process.pid, signal.SIGINT)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode in (130, -signal.SIGINT), errors
    assert json.loads((folder / "run.json").read_text())["state"] == "interrupted"
    assert wait_until_nothing_moves(folder) < LONG["steps"]
    assert finish(spec, home)["state"] == "succeeded"
    assert scratch_folders() <= before


def part_of(driver: int, name: str) -> int:
    """The process of that name which the driver has started: its own Ray's."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            program = (folder / "cmdline").read_bytes().split(b"\0")[0].decode()
            if parent == driver and program.endswith(f"/{name}"):
                return int(folder.name)
    raise AssertionError(f"{driver} has started no {name}")


def scratch_of(driver: int) -> Path:
    """The temporary folder of a driver's Ray."""
    words = Path(f"/proc/{part_of(driver, 'raylet')}/cmdline").read_text()
    found = re.search(r"/tmp/raydml-ray-\w+", words)
    assert found is not None, words
    return Path(found[0])


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> object:
    """The SHA-256 of an undisturbed run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(document(write_images(folder), "stopped", train=LONG)))
    return finish(path, folder / "home")["state_sha256"]


@pytest.mark.parametrize("victim", ["driver", "gcs_server", "raylet"])
def test_a_run_that_lost_its_driver_or_a_part_of_its_ray_goes_on_to_the_same_bits(
    spec: Path, home: Path, wanted: object, victim: str
) -> None:
    folder = home / "runs" / "stopped"
    step = random.SystemRandom().randrange(1, LONG["steps"] - 100)
    with started(spec, home) as process:
        wait_for_step(folder, step, process)
        scratch = scratch_of(process.pid)
        os.kill(process.pid if victim == "driver" else part_of(process.pid, victim), signal.SIGKILL)
        _, errors = process.communicate(timeout=600)
    state = json.loads((folder / "run.json").read_text())["state"]
    assert (process.returncode == 0) == (state == "succeeded"), (state, errors)
    print(f"{victim} killed at step {step}: exit {process.returncode}, {state}")
    if state != "succeeded":  # the workers may have finished without the part that was lost
        wait_until_nothing_moves(folder)
        finish(spec, home)
        # Where only a part of Ray was killed, the rest may still write there: then a later run sweeps it.
        assert victim != "driver" or not scratch.exists(), "its scratch folder went with the next run"
    assert json.loads((folder / "run.json").read_text())["state_sha256"] == wanted


def test_a_resized_run_is_resumed_with_the_number_that_was_asked_for(spec: Path, home: Path) -> None:
    folder = home / "runs" / "stopped"
    with started(spec, home) as process:
        wait_for_step(folder, 20, process)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAYDML_HOME", str(home))
            raydml.resize("stopped", 1)
    # The driver is killed, before or after it has taken the request up.
    wait_until_nothing_moves(folder)
    resumed = finish(spec, home)
    assert resumed["world_size_history"][-1]["workers"] == 1  # type: ignore[index]
