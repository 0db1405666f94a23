"""Whole studies on a real local Ray: searched, crowned, killed, resumed, stopped."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import raydml
from raydml.errors import Interrupted, RunExists
from raydml.runs import find_run
from raydml.tuning.record import StudyRecord
from raydml.tuning.result import read_result
from tests.distributed.harness import write_images
from tests.ray.commands import document
from tests.ray.studies import evaluated, spec_of, start
from tests.unit.studies import Synthetic, drive, new_study
from tests.unit.test_tuning import near

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]

MARGINS = {
    "space": {
        "loss": {
            "choice": [
                {"kind": "triplet", "margin": {"uniform": [0.05, 0.5]}},
                {"kind": "contrastive", "neg_margin": {"uniform": [0.2, 0.8]}},
            ]
        }
    },
    "scheduler": {"kind": "asha"},
    "trials": 4,
}


@pytest.mark.usefixtures("shared_ray")
def test_the_winner_of_a_study_is_a_run_like_any_other(tmp_path: Path, home: Path) -> None:
    told: list[str] = []
    spec = document(write_images(tmp_path), "margins", tune=MARGINS)
    study = raydml.tune(spec, listen=lambda found: told.append(found.state))
    assert study.state == "succeeded" and "running" in told
    assert [row.state for row in study.rows].count("trained") >= 1 and len(study.rows) == 4
    run = find_run("margins")
    assert run.state == "succeeded" and run.metrics["queries"] > 0 and run.baseline
    assert run.collection.count() == run.metrics["queries"]
    best = yaml.safe_load((study.folder / "best.yaml").read_text())
    plain = raydml.train(best | {"name": "plain", "index": None})
    assert plain.sha256 == run.sha256, "the best spec alone trains the same model"
    with pytest.raises(RunExists, match="--again"):
        raydml.tune(spec)


@pytest.mark.usefixtures("shared_ray")
def test_a_study_that_is_stopped_keeps_its_trials_and_goes_on(tmp_path: Path, home: Path) -> None:
    spec = document(write_images(tmp_path), "stopped", tune=MARGINS | {"scheduler": {"kind": "none"}, "trials": 2})
    spec["train"] |= {"steps": 400, "evaluate_every": 200}
    record = StudyRecord(home / "studies" / "stopped")

    def stop() -> None:
        while not any((record.trial_folder(f"0000{n}-0") / "metrics.jsonl").exists() for n in range(2)):
            time.sleep(0.05)
        record.request_stop()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Interrupted):
        raydml.tune(spec)
    thread.join()
    halted = read_result(record.folder)
    assert halted.state == "interrupted" and any(record.trial_folder("00000-0").glob("checkpoints/step-*"))
    step = max(int(path.name[5:]) for path in record.trial_folder("00000-0").glob("checkpoints/step-*"))
    assert 0 < step < 400, "the step at which it was stopped is kept"
    study = raydml.tune(spec)
    assert [row.step for row in study.rows] == [400, 400] and find_run("stopped").state == "succeeded"


def kill_until_done(folder: Path, tune: dict[str, Any], kills: int, seed: int) -> None:
    """Start the study and kill its driver after a random number of evaluations, so many times; then let it end."""
    chance = random.Random(seed)
    for _ in range(kills):
        process = start(folder, tune)
        until = sum(evaluated(folder).values()) + chance.randrange(1, 6)
        while sum(evaluated(folder).values()) < until and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is None:
            time.sleep(chance.random() * 0.1)
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    process = start(folder, tune)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def check_whole(folder: Path, tune: dict[str, Any], kills: int, tmp_path: Path) -> None:
    undisturbed = tmp_path / "undisturbed"
    drive(new_study(undisturbed, spec_of(tune)), Synthetic(near))
    found, expected = read_result(folder), read_result(undisturbed)
    assert {row.configuration: (row.values, row.score, row.step) for row in found.rows} == {
        row.configuration: (row.values, row.score, row.step) for row in expected.rows
    }
    counts = evaluated(folder)
    assert set(counts) == {(f"{row.configuration:05d}-0", step) for row in found.rows for step in range(10, 100, 10)}
    assert sum(counts.values()) <= len(counts) + 2 * kills, (
        "what was under way at a kill, and nothing else, is repeated"
    )


def test_a_study_whose_driver_is_killed_loses_and_repeats_no_trial(tmp_path: Path) -> None:
    tune: dict[str, Any] = {"trials": 3}
    kill_until_done(tmp_path / "study", tune, 1, 5)
    check_whole(tmp_path / "study", tune, 1, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thirty_random_kills_of_a_driver_lose_and_repeat_no_trial(tmp_path: Path) -> None:
    tune: dict[str, Any] = {"trials": 12}
    kill_until_done(tmp_path / "study", tune, 30, 6)
    check_whole(tmp_path / "study", tune, 30, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("shared_ray")
def test_twelve_trials_of_four_losses_on_glyphs(home: Path) -> None:
    """The example: ASHA over four losses and their margins, on two cores."""
    example = Path(__file__).parents[2] / "examples" / "tune-margins.yaml"
    started = time.monotonic()
    study = raydml.tune(example)
    print(f"12 trials on glyphs: {time.monotonic() - started:.0f} s")
    assert study.state == "succeeded" and len(study.rows) == 12 and study.best is not None
    run = find_run("glyph-margins")
    assert run.metrics["map_at_r"] > run.baseline["map_at_r"]
