"""Whole studies on a real local Ray: searched, crowned, killed, resumed, stopped."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import raydml
from raydml.errors import Interrupted, RunExists
from raydml.files import append_line
from raydml.runs import find_run
from raydml.training.checkpoints import Checkpoints
from raydml.training.lines import read_lines
from raydml.tuning.record import StudyRecord
from raydml.tuning.result import read_result
from raydml.tuning.study import search
from raydml.tuning.trial import Training
from raydml.tuning.trials import check_space
from tests.distributed.harness import write_images
from tests.ray.commands import command, document
from tests.ray.studies import evaluated, spec_of, start
from tests.unit.studies import Synthetic, drive, new_study, no_checkpoint
from tests.unit.test_tuning import near
from tests.unit.test_tuning_trials import Vectors, small_study

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


@pytest.mark.slow
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


class Dying:
    """Trials of which the first loses its process at its fourth step, once, and the second at every first step."""

    def __call__(self, folder: Path, until: int) -> None:
        begun = folder.parent.parent / f"{folder.name}.txt"

        def on_step() -> None:
            append_line(begun, "step", durable=True)
            if folder.name == "00001-0" or (folder.name == "00000-0" and len(begun.read_text().split()) == 4):
                os.kill(os.getpid(), signal.SIGKILL)

        Synthetic(near, on_step=on_step)(folder, until)


@pytest.mark.usefixtures("shared_ray")
def test_a_trial_whose_process_dies_goes_on_once_and_has_failed_when_it_dies_again(tmp_path: Path) -> None:
    spec, folder = spec_of({"trials": 3, "concurrency": 1}), tmp_path / "study"
    new_study(folder, spec)
    search(spec, StudyRecord(folder), Dying(), check_space(spec), time.time(), copy=no_checkpoint)
    begun = {path.stem: len(path.read_text().split()) for path in folder.glob("*-0.txt")}
    assert begun == {"00000-0": 10, "00001-0": 2, "00002-0": 9}, "of nine steps the one in which it died was repeated"
    rows = {row.configuration: row for row in read_result(folder).rows}
    assert [rows[number].state for number in range(3)] == ["trained", "failed", "trained"]
    assert (rows[0].step, rows[0].reason, rows[2].step) == (90, None, 90)
    assert rows[1].reason == "its process died 2 times before step 90"


class Brief:
    """Trials that take less time than their process takes to start."""

    def __call__(self, folder: Path, until: int) -> None:
        append_line(folder.parent.parent / "processes.txt", str(os.getpid()), durable=True)
        time.sleep(0.7)
        Synthetic(near)(folder, until)


@pytest.mark.usefixtures("shared_ray")
def test_brief_trials_run_as_many_at_once_as_were_admitted(tmp_path: Path) -> None:
    spec, folder = spec_of({"trials": 8, "concurrency": 2}), tmp_path / "study"
    new_study(folder, spec)
    search(spec, StudyRecord(folder), Brief(), check_space(spec), time.time(), copy=no_checkpoint)
    shares = Counter((folder / "processes.txt").read_text().split())
    assert sum(shares.values()) == 8 and len(shares) == 2 and min(shares.values()) >= 2


@dataclass(frozen=True)
class Shot:
    """A real trial, whose process is killed while it takes a step after its first checkpoint: the first time."""

    training: Training

    def __call__(self, folder: Path, until: int) -> None:
        mark = folder / "shot"
        if not mark.exists():
            threading.Thread(target=self._shoot, args=(folder, mark), daemon=True).start()
        self.training(folder, until)

    def _shoot(self, folder: Path, mark: Path) -> None:
        while not any(folder.glob("checkpoints/step-*")):
            time.sleep(0.001)
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_a_trial_killed_while_it_trains_ends_with_the_bits_of_one_that_was_not(tmp_path: Path) -> None:
    one = {"parallel": {"workers": {"min": 1, "max": 1, "cpus": 1}}, "train": {"steps": 400, "evaluate_every": 4}}
    spec, folder = small_study({"trials": 1}, **one), tmp_path / "study"
    new_study(folder, spec)
    training = Training(tmp_path, Vectors())
    search(spec, StudyRecord(folder), Shot(training), check_space(spec), time.time())
    trial, plain = folder / "trials" / "00000-0", tmp_path / "plain" / "trials" / "00000-0"
    drive(new_study(tmp_path / "plain", spec), training)
    assert (trial / "shot").exists()
    states = [Checkpoints(each / "checkpoints", 1).header(400).state_sha256 for each in (trial, plain)]
    assert states[0] == states[1]
    lines = [[line["step"] for line in read_lines(each / "metrics.jsonl")[0]] for each in (trial, plain)]
    assert lines[0] == lines[1], "each step and each evaluation is told once"


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_a_study_of_folds_ends_with_an_ordinary_run_and_with_what_its_models_reach_together(
    tmp_path: Path, home: Path
) -> None:
    tune = {"space": {"loss.margin": {"choice": [0.1, 0.4]}}, "protocol": "reality_check", "folds": 2, "trials": 2}
    spec = document(write_images(tmp_path), "folds", loss={"kind": "triplet"}, tune=tune)
    study = raydml.tune(spec)
    found = study.summary()["reality_check"]
    run, best = find_run("folds"), study.best
    assert run.state == "succeeded" and run.metrics.keys() == found["separated"].keys() == found["concatenated"].keys()
    assert best is not None and [row.state for row in study.rows] == ["trained", "trained"]
    for row in study.rows:
        measured = [path.exists() for path in study.folder.glob(f"trials/{row.configuration:05d}-*/model")]
        assert len(measured) == (2 if row.configuration == best.configuration else 0), (
            "test classes only for the winner"
        )
    data = yaml.safe_load((study.folder / "best.yaml").read_text())["data"]
    assert data["fold"] is None and find_run("folds").collection.count() == run.metrics["queries"]


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


def told(folder: Path) -> dict[str, list[tuple[int, bool]]]:
    """By trial, the steps that it logged, and for each whether it is an evaluation."""
    paths = sorted(folder.glob("trials/*/metrics.jsonl"))
    return {path.parent.name: [(line["step"], "validation" in line) for line in read_lines(path)[0]] for path in paths}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twelve_trials_of_four_losses_on_glyphs_end_though_the_study_is_killed(home: Path) -> None:
    """The example: ASHA over four losses and their margins, on two cores; killed once at a moment that nobody chose."""
    example = Path(__file__).parents[2] / "examples" / "tune-margins.yaml"
    folder, moment = home / "studies" / "glyph-margins", random.randrange(5, 15)
    started = time.monotonic()
    process = command(example, home, verb="tune")
    while sum(evaluation for steps in told(folder).values() for _, evaluation in steps) < moment:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = {row.configuration: row for row in read_result(folder).rows}
    process = command(example, home, verb="tune")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    print(f"12 trials on glyphs, killed after {moment} evaluations: {time.monotonic() - started:.0f} s")
    study, run = read_result(folder), find_run("glyph-margins")
    assert study.state == "succeeded" and sorted(row.configuration for row in study.rows) == list(range(12))
    assert {row.values["loss.kind"] for row in study.rows} == {"contrastive", "triplet", "multi_similarity", "arcface"}
    for row in study.rows:
        if row.configuration in before:
            assert row.values == before[row.configuration].values and row.step >= before[row.configuration].step
        steps = told(folder)[f"{row.configuration:05d}-0"]
        assert [step for step, evaluation in steps if not evaluation] == list(range(1, row.step + 1)), "each step once"
        assert [step for step, evaluation in steps if evaluation] == list(range(10, row.step + 1, 10))
    assert [event["event"] for event in StudyRecord(folder).events()].count("created") == 12
    assert study.best is not None and study.best.step == 90
    assert run.state == "succeeded" and run.metrics["map_at_r"] > run.baseline["map_at_r"]
