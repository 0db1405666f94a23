"""Which trials measure strategies, what is kept, and what `strategy: auto` takes of it; no process is started."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from raydml import run
from raydml.data import Dataset, open_dataset
from raydml.errors import DataError, ResourceError, SpecError
from raydml.measuring import measure
from raydml.measuring.trials import spec_of, trials_of
from raydml.models import build_model
from raydml.parallel.estimate import Candidate, candidates, facts_of, measured
from raydml.parallel.measured import Measured, Trial, hardware, key_of, recall, remember
from raydml.plan import plan
from raydml.spec import JobSpec, MeasureSpec, MeshSpec
from tests.distributed.harness import small_spec, write_images

pytestmark = pytest.mark.timeout(60)
LOTS = 2**40  # bytes
DDP, FSDP = (Trial(strategy, MeshSpec(), 2) for strategy in ("ddp", "fsdp"))


def spec_with(images: Path, **parallel: Any) -> JobSpec:
    return small_spec(images, parallel={"workers": {"min": 1, "max": 2}, "strategy": "auto", **parallel})


def found_of(spec: JobSpec, images: Path) -> list[Candidate]:
    dataset = open_dataset(spec.data, images.parent)
    model = build_model(spec.model, dataset.input_shape, spec.seed)
    facts = facts_of(spec, model, measured(spec, model, torch.float32), torch.device("cpu"), 24)
    return candidates(facts, spec.parallel.workers.max)


def names(spec: JobSpec, images: Path, share: int = LOTS, rounding: bool = False) -> list[str]:
    trials = trials_of(spec, found_of(spec, images), share, rounding=rounding)
    return [f"{trial.name} on {trial.workers}" for trial in trials if trial.failed is None]


def test_every_strategy_and_fewer_workers_are_tried(images: Path) -> None:
    every = ["ddp on 2", "fsdp on 2", "tensor x tensor 2 on 2", "pipeline x pipeline 2 on 2"]
    assert names(spec_with(images), images) == [*every, "ddp, parallel.numerics=fast on 2", "ddp on 1"]
    assert names(spec_with(images, workers=2), images) == [*every, "ddp, parallel.numerics=fast on 2"]
    assert names(spec_with(images, workers=2, numerics="fast"), images) == every
    assert names(spec_with(images, workers={"min": 1, "max": 8}), images)[-3:] == ["ddp on 4", "ddp on 2", "ddp on 1"]


def test_class_vectors_are_tried_on_owners_and_on_all(images: Path) -> None:
    spec = spec_with(images, workers=2).model_dump(mode="json")
    found = {}
    for given in (None, True, {"sample_rate": 0.5}):
        loss = {"kind": "arcface", "class_parallel": given}
        asked = JobSpec.model_validate(spec | {"loss": loss})
        found[str(given)] = [name for name in names(asked, images) if "class_parallel" in name]
    strategies = ("ddp", "fsdp", "tensor x tensor 2", "pipeline x pipeline 2")
    assert found["None"] == [f"{name}, loss.class_parallel=true on 2" for name in strategies]
    assert found["True"] == [f"{name}, loss.class_parallel=false on 2" for name in strategies]
    assert found[str({"sample_rate": 0.5})] == []  # all classes on all workers do not sample
    only = JobSpec.model_validate(spec | {"loss": {"kind": "softmax"}})  # which has no other way
    assert not any("class_parallel" in name for name in names(only, images))


def test_what_rounds_is_tried_only_when_asked_and_never_picked(images: Path) -> None:
    plain, more = (names(spec_with(images, workers=2), images, rounding=rounding) for rounding in (False, True))
    added = ["precision=bf16", "compression=fp16", "compression=bf16", "compression=powersgd"]
    assert more == plain + [f"ddp, parallel.{name} on 2" for name in added]
    trials = (replace(DDP, seconds=2.0), replace(DDP, changes={"parallel.precision": "bf16"}, rounds=True, seconds=1.0))
    found = Measured("k", {}, 2, 32, trials)
    assert found.fastest is found.chosen is trials[0]


def test_what_cannot_be_or_does_not_fit_says_why(images: Path) -> None:
    spec = spec_with(images, workers=2)
    found = found_of(spec, images)
    most = max(found, key=lambda candidate: candidate.memory)
    trials = trials_of(spec, found, 2 * most.memory - 1, rounding=False)
    (left_out,) = [trial for trial in trials if trial.failed is not None]
    assert left_out.strategy == most.strategy and "would hold" in str(left_out.failed)
    nothing = trials_of(spec, found, 1, rounding=False)
    assert all(trial.failed is None for trial in nothing)  # the least bad ones are tried
    impossible = [replace(found[1], impossible="it has no layers"), found[0]]
    assert [trial.failed for trial in trials_of(spec, impossible, LOTS, rounding=False)][:2] == [
        "it has no layers",
        None,
    ]
    half = spec_with(images, workers=2, precision="fp16", strategy="ddp")
    refused = {trial.strategy: trial.failed for trial in trials_of(half, found, LOTS, rounding=False)}
    assert refused["ddp"] is None and "choose bf16" in str(refused["fsdp"])


def test_the_job_of_a_trial_is_the_job_with_its_changes(images: Path) -> None:
    spec = spec_with(images, patience=9.0)
    trial = Trial("tensor", MeshSpec(tensor=2), 2, changes={"parallel.precision": "bf16"})
    job = spec_of(spec, trial, 50)
    assert (job.parallel.strategy, job.parallel.mesh.tensor, job.parallel.precision) == ("tensor", 2, "bf16")
    assert (job.parallel.workers.min, job.parallel.workers.max, job.parallel.patience) == (2, 2, 9.0)
    assert job.train.steps == 50 and job.loss == spec.loss and job.batch == spec.batch


def test_measurements_are_found_again_by_hardware_and_job_whatever_strategy_it_names(
    images: Path, tmp_path: Path
) -> None:
    spec = spec_with(images)
    dataset = open_dataset(spec.data, tmp_path)
    key = key_of(spec, dataset)
    alike = [
        spec_with(images, strategy="fsdp"),
        spec_with(images, patience=30.0),
        spec.model_copy(update={"name": "other", "seed": 9}),
    ]
    others = [
        spec_with(images, precision="bf16"),
        spec_with(images, workers={"min": 1, "max": 4}),
        spec.model_copy(update={"batch": spec.batch.model_copy(update={"classes": 4})}),
        small_spec(images, parallel=spec.parallel.model_dump(), loss={"kind": "contrastive"}),
    ]
    assert {key_of(other, dataset) for other in alike} == {key}
    assert len({key, *(key_of(other, dataset) for other in others)}) == 1 + len(others)
    more = write_images(tmp_path, classes=40)
    assert key_of(spec, open_dataset(spec_with(more).data, tmp_path)) != key
    found = Measured(key, hardware(), 2, 32, (replace(FSDP, seconds=0.1, memory=5), replace(DDP, failed="no")))
    assert recall(tmp_path, key) is None
    remember(tmp_path, found)
    assert recall(tmp_path, key) == found and recall(tmp_path, "0" * 64) is None
    assert Measured.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def measured_as(spec: JobSpec, home: Path, **seconds: float) -> Measured:
    """Kept figures of each strategy, by its seconds."""
    trials = tuple(replace(one, seconds=seconds[one.strategy]) for one in (DDP, FSDP) if one.strategy in seconds)
    found = Measured(key_of(spec, open_dataset(spec.data, home)), hardware(), 2, spec.batch.size, trials)
    remember(home, found)
    return found


def test_auto_takes_what_was_measured_and_the_plan_says_so(images: Path, home: Path) -> None:
    spec = spec_with(images)
    dataset = open_dataset(spec.data, home)
    assert plan(spec, dataset, home).spec.parallel.strategy == "ddp"  # the cost model's
    measured_as(spec, home, ddp=0.5, fsdp=0.25)
    made = plan(spec, dataset, home)
    assert made.spec.parallel.strategy == "fsdp" and made.proposal is not None
    assert made.proposal[1] == "measured here, 0.25 s a step" and made.to_dict()["measured"]["workers"] == 2
    assert plan(spec, dataset).spec.parallel.strategy == "ddp"  # a home without measurements
    assert (
        plan(spec_with(images, strategy="tensor", mesh={"tensor": 2}), dataset, home).spec.parallel.strategy == "tensor"
    )


def test_a_run_with_auto_trains_with_what_was_measured(
    images: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_with(images)
    measured_as(spec, home, ddp=0.5, fsdp=0.25)
    seen: list[str] = []

    def stop(job: Any, *given: Any) -> None:
        seen.append(job.spec.parallel.strategy)
        raise ResourceError("far enough")

    monkeypatch.setattr(run, "_train_on_ray", stop)
    with pytest.raises(ResourceError, match="far enough"):
        run.train(spec, home=home)
    assert seen == ["fsdp"]
    facts = json.loads((home / "runs" / "small" / "run.json").read_text())
    assert facts["strategy"] == "strategy fsdp: measured here, 0.25 s a step"


def test_what_auto_may_not_take_is_told(images: Path) -> None:
    faster = replace(DDP, workers=1, changes={"loss.class_parallel": True}, seconds=0.1)
    found = Measured("k", {}, 2, 32, (faster, replace(FSDP, seconds=0.2), replace(DDP, seconds=0.3)))
    assert found.chosen is found.trials[1] and found.fastest is faster
    sets = "--set parallel.workers.max=1 --set parallel.strategy=ddp --set loss.class_parallel=true"
    assert found.why == f"measured here, 0.2 s a step; 0.1 s with {sets}"


def test_auto_leaves_ddp_only_for_what_is_faster_by_more_than_chance() -> None:
    for seconds, wanted in ((1.04, "ddp"), (1.06, "fsdp"), (0.5, "ddp")):
        found = Measured("k", {}, 2, 32, (replace(FSDP, seconds=1.0), replace(DDP, seconds=seconds)))
        assert found.chosen is not None and found.chosen.strategy == wanted
    without = Measured("k", {}, 2, 32, (replace(FSDP, seconds=1.0), replace(DDP, failed="no")))
    assert without.chosen is without.trials[0]
    tensor = Trial("tensor", MeshSpec(tensor=2), 2, changes={"loss.class_parallel": True}, seconds=0.1)
    told = Measured("k", {}, 2, 32, (tensor, replace(DDP, seconds=1.0))).why
    assert told.endswith("--set parallel.strategy=tensor --set parallel.mesh.tensor=2 --set loss.class_parallel=true")


def test_a_busy_machine_is_told_unless_workers_share_cores_anyway() -> None:
    trials = (replace(DDP, seconds=1.0, waited=0.1), replace(DDP, workers=4, seconds=1.0, waited=0.9))
    assert Measured("k", {"cpus": 2}, 4, 32, trials).note is None
    assert "90% of the time" in str(Measured("k", {"cpus": 4}, 4, 32, trials).note)


def test_nothing_measured_at_the_most_workers_leaves_the_cost_model_its_say(images: Path, home: Path) -> None:
    spec = spec_with(images)
    key = key_of(spec, open_dataset(spec.data, home))
    remember(home, Measured(key, {}, 2, 32, (replace(DDP, workers=1, seconds=0.1), replace(FSDP, failed="no"))))
    made = plan(spec, open_dataset(spec.data, home), home)
    assert made.spec.parallel.strategy == "ddp" and "whole model fits" in str(made.proposal)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"model": {"backbone": {"kind": "custom"}, "dimension": 8}}, SpecError, "cannot be measured"),
        ({"batch": {"classes": 400, "samples": 4, "virtual_workers": 8}}, DataError, "400"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_a_process_starts(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: Any, kind: Any, words: str
) -> None:
    monkeypatch.setattr("raydml.measuring.strategies.run_trial", None)  # it would fail
    spec = small_spec(images, **changes)
    with pytest.raises(kind, match=words):
        measure(spec, open_dataset(spec.data, tmp_path), tmp_path)


@pytest.mark.parametrize("options", [{"steps": 1}, {"steps": 10**6}, {"seconds": 0}, {"rounds": True}])
def test_options_out_of_bounds_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="1 validation error"):
        MeasureSpec(**options)


def test_a_few_contents_stand_for_all_items(images: Path, tmp_path: Path) -> None:
    dataset: Dataset = open_dataset(small_spec(images).data, tmp_path)
    few, train = dataset.repeating(5), dataset.indices("train")
    for item in range(len(dataset.items.ids)):
        assert (few.read(item) == dataset.read(int(train[item % 5]))).all()
    assert few.items is dataset.items and (few.training_labels == dataset.training_labels).all()
    assert (dataset.read(int(train[7])) != few.read(int(train[7]))).any()
