"""Studies by the protocol of the reality check: a model for each fold, their mean, and the winner's on test classes."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from raydml.cli.tuning import study_table
from raydml.data import open_dataset
from raydml.errors import DataError, SpecError
from raydml.evaluation import retrieval, summarise
from raydml.models import load_model
from raydml.parallel import Group
from raydml.specfile import load_spec, parse_spec
from raydml.training.record import RunRecord
from raydml.training.worker import Job, Worker
from raydml.tuning.folds import reality_check
from raydml.tuning.record import StudyRecord
from raydml.tuning.result import read_result
from raydml.tuning.study import check
from raydml.tuning.trial import Training
from raydml.tuning.trials import check_space
from tests.unit.studies import Synthetic, drive, new_study, study_spec
from tests.unit.test_tuning import near
from tests.unit.test_tuning_trials import Vectors, small_study

pytestmark = pytest.mark.timeout(120)
FOLDS: dict[str, Any] = {"protocol": "reality_check"}


def test_a_configuration_is_judged_by_the_mean_over_its_folds_and_seeds(tmp_path: Path) -> None:
    spec = study_spec({**FOLDS, "folds": 3, "seeds": 2, "trials": 4, "scheduler": {"kind": "asha"}})

    def score(document: dict[str, Any], step: int) -> float:
        fold = document["data"]["fold"]
        assert fold["of"] == 3
        return near(document, step) + 0.1 * fold["number"] ** 2 + 0.01 * (document["seed"] - spec.seed)

    folder = tmp_path / "study"
    drive(new_study(folder, spec, 4), Synthetic(score), 4)
    rows = read_result(folder).rows
    for row in rows:
        each = {
            seed: [near({"loss": {"margin": row.values["loss.margin"]}}, row.step) + 0.1 * n * n for n in range(3)]
            for seed in (3, 4)
        }
        expected = {seed: sum(found) / 3 + 0.01 * (seed - 3) for seed, found in each.items()}
        assert row.by_seed == pytest.approx(expected)
        assert row.score == pytest.approx(sum(expected.values()) / 2)
    trials = [load_spec(path) for path in sorted(folder.glob("trials/00002-*/spec.yaml"))]
    seen = [(trial.seed, trial.data.fold.number if trial.data.fold else None) for trial in trials]
    assert seen == [(3, 0), (3, 1), (3, 2), (4, 0), (4, 1), (4, 2)], "the same seeds and folds for all"
    assert len(list(folder.glob("trials/*"))) == 24


def test_the_models_of_the_winner_are_measured_by_themselves_and_together(tmp_path: Path) -> None:
    spec = small_study({**FOLDS, "folds": 3, "trials": 2})
    folder, data = tmp_path / "study", Vectors()
    training = Training(tmp_path, data)
    drive(new_study(folder, spec), training)
    record = StudyRecord(folder)
    own = [record.trial_folder(f"00001-{fold}") for fold in range(3)]
    found = reality_check(own, training)
    models = []
    for fold, trial in enumerate(own):
        plain = load_spec(trial / "spec.yaml")
        run = Worker(Job(plain, tmp_path / f"plain-{fold}", tmp_path, None, data), Group(0, 1, 4), torch.device("cpu"))
        run.run()
        facts = run.record.read()
        assert facts["metrics"] == found["each"][fold], "each is what an ordinary run of its spec reaches"
        assert facts["sha256"] == RunRecord(trial).read()["sha256"]
        models.append(load_model(trial / "model").model)
    assert len({RunRecord(trial).read()["sha256"] for trial in own}) == 3
    for name, value in found["separated"].items():
        assert value == pytest.approx(sum(each[name] for each in found["each"]) / 3)
    dataset = open_dataset(spec.data, tmp_path, custom=data)
    test = dataset.indices("test")
    parts = [model(dataset.tensors(test)).detach().numpy() for model in models]
    longest = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts]
    labels, rows = dataset.items.labels[test], np.arange(len(test))
    whole = np.concatenate(longest, axis=1)
    assert found["concatenated"] == pytest.approx(summarise(retrieval(whole, labels, whole, labels, own=rows)))
    others = [record.trial_folder(f"00000-{fold}") for fold in range(3)]
    assert not any((trial / "model").exists() or "metrics" in RunRecord(trial).read() for trial in others)
    assert reality_check(own, training) == found, "again, and nothing is trained or measured anew"


def test_the_table_of_a_study_of_folds_tells_what_its_models_reach_together(tmp_path: Path) -> None:
    drive(new_study(tmp_path / "study", study_spec({**FOLDS, "trials": 2})), Synthetic(near))
    together = {"folds": 4, "separated": {"map_at_r": 0.25}, "concatenated": {"map_at_r": 0.5}}
    StudyRecord(tmp_path / "study").change(state="succeeded", reality_check=together)
    result, stream = read_result(tmp_path / "study"), StringIO()
    Console(file=stream, width=200).print(study_table(result))
    assert "its 4 models on test classes: map_at_r 0.2500 separated, 0.5000 concatenated" in stream.getvalue()
    assert result.summary()["reality_check"] == together


def test_what_no_study_of_folds_can_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="seeds: 1 and protocol: validation, not with none, 1 and reality_check"):
        study_spec({**FOLDS, "algorithm": {"kind": "pbt"}})
    with pytest.raises(SpecError, match="folds: 5 belongs to protocol: reality_check, and this is validation"):
        study_spec({"folds": 5})
    divided = study_spec(FOLDS, data={"kind": "glyphs", "fold": {"number": 0, "of": 4}})
    with pytest.raises(SpecError, match=r"data\.fold is what protocol: reality_check sets"):
        check_space(divided)
    with pytest.raises(DataError, match="16 training classes do not make 9 folds"):
        check(small_study({**FOLDS, "folds": 9}), tmp_path, dataset=Vectors())
    lone = small_study({**FOLDS, "folds": 8})
    single = Vectors()
    single.splits = ["test" if label % 5 == 4 else "train" for label in single.labels]
    check(lone, tmp_path, dataset=single)  # of the classes that train, some validate: no more are needed
    narrow = parse_spec(lone.model_dump(mode="json") | {"batch": {"classes": 15, "samples": 4, "virtual_workers": 4}})
    with pytest.raises((DataError, SpecError), match="15"):
        check(narrow, tmp_path, dataset=single)
