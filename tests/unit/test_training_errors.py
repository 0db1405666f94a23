"""One worker in this process: what stops a training, and that a stopped step leaves the state as it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raydml.errors import SpecError, TrainingDiverged
from raydml.parallel import Group
from raydml.spec import JobSpec
from raydml.training.checkpoints import Checkpoints
from raydml.training.loop import StepReport
from raydml.training.record import RunRecord, read_lines
from raydml.training.worker import Job, Worker
from tests.distributed.harness import small_spec

BATCH_NORM_AND_CENTRES = {"kind": "arcface", "center": {"weight": 0.01}}


def spec_of(images: Path, train: dict[str, Any] | None = None, **changes: Any) -> JobSpec:
    section = {"steps": 12, "evaluate_every": 0, "checkpoint_every": 1000} | (train or {})
    return small_spec(images, **({"loss": BATCH_NORM_AND_CENTRES, "train": section} | changes))


def worker(spec: JobSpec, folder: Path, resume: int | None = None, model: nn.Module | None = None) -> Worker:
    folder.mkdir(exist_ok=True)
    return Worker(Job(spec, folder, folder, resume, None, model), Group(0, 1, 8), torch.device("cpu"))


def digests(one: Worker, until: int) -> list[str]:
    """The state's digest before the first step and after each step that committed, also when one stops the run."""
    state = one.trainer.state
    seen = [state.digest()]

    def after(report: StepReport) -> bool:
        seen.append(state.digest())
        return True

    try:
        one.trainer.run(until, after)
    except TrainingDiverged as error:
        seen.append(state.digest())
        assert seen[-1] == seen[-2], "the step that diverged left a trace"
        assert state.step == len(seen) - 2 == error.data["step"]
        raise
    return seen


def batch_items(one: Worker, step: int) -> list[str]:
    items = one.dataset.indices("train")[one.trainer.plan.batch(step)]
    return [one.dataset.items.ids[item] for item in items]


def test_every_step_moves_the_state_so_that_these_tests_can_fail(images: Path, tmp_path: Path) -> None:
    one = worker(spec_of(images), tmp_path)
    before = {name: value.clone() for name, value in one.trainer.state.tensors().items()}
    assert len(set(digests(one, 3))) == 4
    after = one.trainer.state.tensors()
    for name in ("model.backbone.2.running_mean", "objective.center.centers", "model.head.weight"):
        assert not torch.equal(after[name], before[name]), name


def test_a_loss_beyond_its_limit_stops_before_the_step_and_names_the_batch(images: Path, tmp_path: Path) -> None:
    one = worker(spec_of(images, {"loss_limit": 1e-6}), tmp_path)
    with pytest.raises(TrainingDiverged, match=r"step 0: the loss is .*, train\.loss_limit is 1e-06") as caught:
        digests(one, 3)
    assert sorted(caught.value.data["items"]) == sorted(batch_items(one, 0))
    assert caught.value.data["items"][0] in str(caught.value)


def test_a_learning_rate_far_too_large_stops_the_run_with_the_last_good_state(images: Path, tmp_path: Path) -> None:
    train = {"optimizer": {"kind": "sgd", "lr": 1e12}, "loss_limit": 1e6}
    model = {"backbone": {"kind": "mlp", "hidden": [16]}, "dimension": 8, "normalize": False}
    one = worker(spec_of(images, train, model=model, loss={"kind": "center"}), tmp_path)
    with pytest.raises(TrainingDiverged) as caught:
        digests(one, 12)
    assert caught.value.data["step"] >= 1
    assert all(bool(value.isfinite().all()) for value in one.trainer.model.parameters())


class Spoiled(nn.Module):
    """Embeddings of 8 numbers; those of the brightest images of all are not numbers."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))

    def forward(self, inputs: Tensor) -> Tensor:
        bright = inputs.mean((1, 2, 3)) > self.limit
        return self.layers(inputs).masked_fill(bright.unsqueeze(1), float("nan"))


@pytest.mark.parametrize(
    "loss",
    [
        {"kind": "triplet", "margin": 0.2},
        {"kind": "triplet", "margin": 0.2, "miner": {"kind": "semihard"}},
        {"kind": "contrastive"},
        {"kind": "multi_similarity", "miner": {"kind": "multi_similarity"}},
        BATCH_NORM_AND_CENTRES,
    ],
    ids=lambda loss: loss["kind"] + "-mined" * ("miner" in loss),
)
def test_one_item_that_embeds_to_nan_stops_the_run_and_is_named_first(
    images: Path, tmp_path: Path, loss: dict[str, Any]
) -> None:
    spec = spec_of(images, model={"backbone": {"kind": "custom"}, "dimension": 8}, loss=loss)
    plain = worker(spec, tmp_path, model=Spoiled(float("inf")))
    brightness = [float(plain.dataset.tensors([item]).mean()) for item in range(len(plain.dataset.items.ids))]
    seen = plain.dataset.indices("train")[plain.trainer.plan.batch(0)].tolist()
    brightest = max(seen, key=lambda item: brightness[item])
    limit = (brightness[brightest] + max(brightness[item] for item in seen if item != brightest)) / 2
    one = worker(spec, tmp_path, model=Spoiled(limit))
    with pytest.raises(TrainingDiverged) as caught:
        digests(one, 1)
    assert caught.value.data["items"][0] == plain.dataset.items.ids[brightest]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_leaves_no_trace_in_weights_statistics_or_centres(
    images: Path, tmp_path: Path, value: float
) -> None:
    one = worker(spec_of(images), tmp_path)
    state = one.trainer.state
    one.trainer.model.head.weight.register_hook(
        lambda gradient: torch.full_like(gradient, value) if state.step == 2 else gradient
    )
    with pytest.raises(TrainingDiverged, match=r"step 2: the gradient's norm is (nan|inf)") as caught:
        digests(one, 5)
    assert caught.value.data["step"] == 2
    assert sorted(caught.value.data["items"]) == sorted(batch_items(one, 2))


def test_a_diverged_run_keeps_its_last_checkpoint(images: Path, tmp_path: Path) -> None:
    one = worker(spec_of(images, {"checkpoint_every": 2}), tmp_path)
    state = one.trainer.state
    one.trainer.model.head.weight.register_hook(
        lambda gradient: gradient * float("nan") if state.step == 5 else gradient
    )
    with pytest.raises(TrainingDiverged):
        one.run()
    assert one.checkpoints.steps() == [2, 4]
    resumed = worker(spec_of(images, {"checkpoint_every": 2}), tmp_path, resume=4)
    assert resumed.trainer.state.digest() == one.checkpoints.header(4).state_sha256


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), r"\(1, 7\)"),
        (nn.Linear(8, 8), r"\(1, 1, 8, 8\)"),
    ],
)
def test_a_model_of_another_dimension_is_refused_before_training(
    images: Path, tmp_path: Path, module: nn.Module, shape: str
) -> None:
    spec = spec_of(images, model={"backbone": {"kind": "custom"}, "dimension": 8})
    with pytest.raises(SpecError, match=rf"one input to shape {shape}, and model\.dimension is 8"):
        worker(spec, tmp_path, model=module)


def test_vectors_are_refused_by_small_cnn_before_training(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(20), 4)
    np.savez(tmp_path / "vectors.npz", inputs=np.random.default_rng(0).normal(size=(80, 5)), labels=labels)
    with pytest.raises(SpecError, match=r"inputs of shape \(5,\): use mlp or linear"):
        worker(spec_of(tmp_path / "vectors.npz", model={"backbone": {"kind": "small_cnn"}}), tmp_path)


# Stop and go on


def finished(spec: JobSpec, folder: Path, resume: int | None = None) -> dict[str, Any]:
    assert worker(spec, folder, resume).run() == "succeeded"
    return RunRecord(folder).read()


OUTCOME = ("state_sha256", "sha256", "exported_step", "metrics", "intervals")


@pytest.mark.parametrize("optimizer", [{"kind": "sgd"}, {"kind": "adamw"}], ids=lambda one: one["kind"])
def test_a_run_that_goes_on_from_a_checkpoint_ends_like_an_undisturbed_one(
    images: Path, tmp_path: Path, optimizer: dict[str, Any]
) -> None:
    train = {
        "steps": 12,
        "evaluate_every": 3,
        "checkpoint_every": 4,
        "keep_last": 3,
        "optimizer": optimizer,
        "schedule": {"kind": "cosine", "warmup_steps": 2},
    }
    spec = spec_of(images, train)
    undisturbed = finished(spec, tmp_path / "undisturbed")
    one = worker(spec, tmp_path / "stopped")
    steps = iter(range(1, 13))

    def after(report: StepReport) -> bool:
        assert report.step == next(steps)
        return one._after_step(report) and report.step < 10  # killed: ten steps, the last checkpoint after eight

    one.trainer.run(12, after)
    assert max(step for step in one.checkpoints.steps() if step % 4 == 0) == 8
    one.record.forget_after(8)
    resumed = finished(spec, tmp_path / "stopped", resume=8)
    assert [resumed[name] for name in OUTCOME] == [undisturbed[name] for name in OUTCOME]
    logged = [read_lines(tmp_path / name / "metrics.jsonl")[0] for name in ("undisturbed", "stopped")]
    curves = [[(line["step"], line["loss"]) for line in lines if "loss" in line] for lines in logged]
    assert curves[0] == curves[1]


def test_a_request_to_stop_saves_a_checkpoint_at_that_step_and_the_run_goes_on_from_there(
    images: Path, tmp_path: Path
) -> None:
    spec = spec_of(images)
    undisturbed = finished(spec, tmp_path / "undisturbed")
    one = worker(spec, tmp_path / "stopped")
    log = one.record.log

    def log_and_stop(**values: Any) -> None:
        log(**values)
        if values["step"] == 5:
            one.record.request_stop()

    one.record.log = log_and_stop  # type: ignore[method-assign]
    assert one.run() == "interrupted"
    (step,) = one.checkpoints.steps()
    assert step in (5, 6)
    assert one.checkpoints.header(step).state_sha256 == one.trainer.state.digest()
    assert not (tmp_path / "stopped" / "model").exists()
    one.record.clear_requests()
    resumed = finished(spec, tmp_path / "stopped", resume=step)
    assert [resumed[name] for name in OUTCOME] == [undisturbed[name] for name in OUTCOME]


def test_a_request_to_stop_that_came_before_the_run_stops_after_one_step(images: Path, tmp_path: Path) -> None:
    one = worker(spec_of(images), tmp_path)
    one.record.request_stop()
    assert one.run() == "interrupted"
    assert one.checkpoints.steps() == [1]


def test_a_request_to_stop_at_the_last_step_comes_too_late(images: Path, tmp_path: Path) -> None:
    one = worker(spec_of(images, {"steps": 1}), tmp_path)
    one.record.request_stop()
    assert one.run() == "succeeded"


def test_a_checkpoint_of_the_last_step_only_needs_measuring(images: Path, tmp_path: Path) -> None:
    spec = spec_of(images, {"steps": 4})
    first = finished(spec, tmp_path)
    second = finished(spec, tmp_path, resume=4)
    assert [second[name] for name in OUTCOME] == [first[name] for name in OUTCOME]
    assert Checkpoints(tmp_path / "checkpoints", 2).steps() == [4]


# The record


def logged(folder: Path, steps: int) -> RunRecord:
    record = RunRecord(folder)
    for step in range(1, steps + 1):
        record.log(step=step, loss=step / 3)
        if step % 2 == 0:
            record.log(step=step, validation={"map_at_r": 0.5})
    return record


@pytest.mark.parametrize("cut", [1, 2, 10, 33])
def test_metrics_cut_short_by_a_kill_are_mended_by_the_next_attempt(tmp_path: Path, cut: int) -> None:
    record = logged(tmp_path, 5)
    whole = record.metrics_path.read_bytes()
    os.truncate(record.metrics_path, len(whole) - cut)
    record.forget_after(4)
    assert [line["step"] for line in read_lines(record.metrics_path)[0]] == [1, 2, 2, 3, 4, 4]
    assert whole.startswith(record.metrics_path.read_bytes())
    record.log(step=5, loss=1.0)
    assert [json.loads(line)["step"] for line in record.metrics_path.read_text().splitlines()][-2:] == [4, 5]


def test_metrics_of_steps_that_are_taken_again_are_forgotten(tmp_path: Path) -> None:
    record = logged(tmp_path, 5)
    record.forget_after(2)
    assert [line["step"] for line in read_lines(record.metrics_path)[0]] == [1, 2, 2]
    record.forget_after(0)
    assert record.metrics_path.read_bytes() == b""


def test_a_reader_sees_complete_lines_only_and_goes_on_where_it_was(tmp_path: Path) -> None:
    record = logged(tmp_path, 1)
    with record.metrics_path.open("a") as file:
        file.write('{"step": 2, "lo')
    lines, offset = read_lines(record.metrics_path)
    assert [line["step"] for line in lines] == [1]
    with record.metrics_path.open("a") as file:
        file.write('ss": 4}\n')
    assert read_lines(record.metrics_path, offset)[0] == [{"step": 2, "loss": 4}]


def test_an_error_that_a_worker_kept_is_there_until_the_next_attempt(tmp_path: Path) -> None:
    record = RunRecord(tmp_path)
    assert record.failure() is None
    record.fail(TrainingDiverged("step 3: no", step=3, items=["a"]))
    record.request_stop()
    assert record.failure() == {"kind": "TrainingDiverged", "message": "step 3: no"}
    record.clear_requests()
    assert record.failure() is None
    assert not record.stop_requested()
