"""Trials that train: what they look at, where they stop, what they copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from raydml.data import open_dataset
from raydml.errors import DataError
from raydml.parallel import Group
from raydml.specfile import load_spec, parse_spec
from raydml.training.checkpoints import TENSORS, Checkpoints
from raydml.training.lines import read_lines
from raydml.training.worker import Job, Worker
from raydml.tuning import trial as trials_of
from raydml.tuning.planner import Planner, Task, copied_checkpoint
from raydml.tuning.record import StudyRecord
from raydml.tuning.result import read_result
from raydml.tuning.study import check
from raydml.tuning.trial import Training
from tests.unit.studies import drive, new_study


class Vectors(torch.utils.data.Dataset[tuple[NDArray[Any], int]]):
    """20 classes of six vectors; those of the test split may be noise."""

    def __init__(self, *, noise: bool = False, validation: str = "validation") -> None:
        random = np.random.default_rng(0)
        self.labels = np.repeat(np.arange(20), 6)
        self.splits = [("train", "train", "train", validation, "test")[label % 5] for label in self.labels]
        self.inputs = (random.normal(size=(20, 12))[self.labels] + random.normal(size=(120, 12))).astype(np.float32)
        if noise:
            test = np.array(self.splits) == "test"
            self.inputs[test] = random.normal(size=(test.sum(), 12))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[NDArray[Any], int]:
        return self.inputs[index], int(self.labels[index])


def small_study(tune: dict[str, Any], **changes: Any) -> Any:
    document = {
        "name": "study",
        "seed": 3,
        "data": {"kind": "custom"},
        "batch": {"classes": 4, "samples": 4, "virtual_workers": 4},
        "model": {"backbone": {"kind": "mlp", "hidden": [16]}, "dimension": 4},
        "loss": {"kind": "triplet", "margin": 0.2},
        "train": {"steps": 12, "evaluate_every": 4},
        "tune": {"space": {"loss.margin": {"uniform": [0.05, 0.5]}}, "trials": 3} | tune,
    }
    return parse_spec(document | changes)


def test_no_test_class_has_any_say_in_a_study(tmp_path: Path) -> None:
    """All of them replaced by noise, every trial scores the same and ends with the same bits."""
    outcomes, measured = [], []
    for name, noise in (("study", False), ("other", True)):
        folder, data = tmp_path / name, Vectors(noise=noise)
        drive(new_study(folder, small_study({"scheduler": {"kind": "asha"}})), Training(tmp_path, data))
        trials = sorted(folder.glob("trials/0*"))
        states = [Checkpoints(trial / "checkpoints", 1) for trial in trials]
        shas = [state.header(state.steps()[-1]).state_sha256 for state in states]
        outcomes.append((shas, [(row.values, row.step, row.score) for row in read_result(folder).rows]))
        for trial in trials:
            assert not (trial / "model").exists() and "metrics" not in json.loads((trial / "run.json").read_text())
        spec = load_spec(trials[0] / "spec.yaml")
        run = Worker(Job(spec, tmp_path / f"{name}-run", tmp_path, None, data), Group(0, 1, 4), torch.device("cpu"))
        run.run()
        measured.append(run.record.read()["metrics"])
    assert outcomes[0] == outcomes[1]
    assert measured[0] != measured[1], "an ordinary run does measure them"


def test_a_trial_stops_where_it_was_told_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    shas = []
    for name, pieces in (("pieces", (4, 8, 12)), ("whole", (12,))):
        planner = new_study(tmp_path / name, small_study({}))
        task = planner.next()
        assert isinstance(task, Task)
        for until in pieces:
            Training(tmp_path, Vectors())(task.folder, until)
            facts = planner.record.trial(task.trial)
            assert facts.step == until and facts.state == ("trained" if until == 12 else "paused")
            assert sorted(facts.evaluations) == list(range(4, until + 1, 4))
            lines = read_lines(task.folder / "metrics.jsonl")[0]
            assert facts.seconds == pytest.approx(sum(line.get("step_seconds", 0) for line in lines), abs=1e-3)
            assert facts.evaluations == {line["step"]: line["validation"] for line in lines if "validation" in line}
            weights = Checkpoints(task.folder / "checkpoints", 1).path(until) / TENSORS
            assert facts.bytes == sum(
                tensor.nbytes for name, tensor in load_file(weights).items() if name.startswith("model.")
            )
        shas.append(Checkpoints(task.folder / "checkpoints", 1).header(12).state_sha256)
    assert shas[0] == shas[1]


def test_a_trial_whose_loss_explodes_says_so_and_is_no_candidate(tmp_path: Path) -> None:
    spec = small_study(
        {"space": {"train.loss_limit": {"choice": [1e-9, 1e6]}}, "algorithm": {"kind": "grid"}, "trials": 2}
    )
    drive(new_study(tmp_path / "study", spec), Training(tmp_path, Vectors()))
    result = read_result(tmp_path / "study")
    assert [row.state for row in result.rows] == ["trained", "failed"]
    assert "TrainingDiverged" in (result.rows[1].reason or "")


def test_pbt_copies_the_whole_state_of_a_better_one_and_changes_its_margin(tmp_path: Path) -> None:
    spec = small_study({"algorithm": {"kind": "pbt", "share": 0.5}, "trials": 4})
    folder, copies = tmp_path / "study", []

    def noted(parent: Path, child: Path, step: int, digest: str) -> None:
        copied_checkpoint(parent, child, step, digest)
        shas = [Checkpoints(each / "checkpoints", 2).check(step).state_sha256 for each in (parent, child)]
        copies.append((parent.name, child.name, step, shas[0] == shas[1]))

    new_study(folder, spec)
    record = StudyRecord(folder)
    drive(Planner(spec, record, 1, noted), Training(tmp_path, Vectors()))
    assert [copy[2:] for copy in copies] == [(4, True)] * 2 + [(8, True)] * 2
    for parent, child, step, _ in copies:
        scores = [record.trial(name).evaluations[step]["map_at_r"] for name in (parent, child)]
        assert scores[0] >= scores[1], "who is copied was at least as good"
    children = [configured for configured in record.configurations() if configured.lineage]
    for configured in children:
        trained = load_spec(folder / "trials" / f"{configured.number:05d}-0" / "spec.yaml")
        assert trained.loss.margin == configured.values["loss.margin"]  # type: ignore[union-attr]
        last = configured.lineage[-1]
        parent = record.configurations()[last["parent"]]
        assert last["values"] == configured.values
        assert parent.lineage or configured.values != parent.values, "copied, and changed"
    assert children and all(row.state == "trained" for row in read_result(folder).rows)


def test_a_study_without_validation_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="could not be compared without the test classes"):
        check(small_study({}), tmp_path, dataset=Vectors(validation="train"))
    check(small_study({}), tmp_path, dataset=Vectors())


def test_a_process_reads_data_once_for_all_its_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Vectors()
    np.savez(tmp_path / "data.npz", inputs=data.inputs, labels=data.labels, splits=np.array(data.splits))
    opened: list[Any] = []
    monkeypatch.setattr(trials_of, "_opened", {})
    monkeypatch.setattr(trials_of, "open_dataset", lambda *given: opened.append(given) or open_dataset(*given))
    spec = small_study({"scheduler": {"kind": "asha"}}, data={"kind": "arrays", "path": str(tmp_path / "data.npz")})
    folder = tmp_path / "study"
    drive(new_study(folder, spec), Training(tmp_path))
    assert {row.state for row in read_result(folder).rows} <= {"trained", "paused"}
    assert len(opened) == 1 and len(list(folder.glob("trials/0*"))) == 3
    space = {"data.augment.noise": {"choice": [0.1, 0.2, 0.3]}}
    others = small_study({"space": space, "algorithm": {"kind": "grid"}}, data=opened[0][0].model_dump(mode="json"))
    drive(new_study(tmp_path / "others", others), Training(tmp_path))
    assert len(opened) == 4, "trials may differ in their data"
    assert len(trials_of._opened) == trials_of.OPENED
