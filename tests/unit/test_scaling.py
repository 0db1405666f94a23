"""fp16: the loss scale follows torch's rule, a step that overflows changes nothing else, a real NaN still stops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raydml.errors import CheckpointError, TrainingDiverged
from raydml.parallel import Group
from raydml.spec import JobSpec
from raydml.training.loop import StepReport
from raydml.training.scaling import INITIAL, INTERVAL, LONGEST_RUN, LossScaler
from raydml.training.worker import Job, Worker
from tests.distributed.harness import small_spec

CUSTOM = {"backbone": {"kind": "custom"}, "dimension": 8}


def spec_of(images: Path, **changes: Any) -> JobSpec:
    loss = {"kind": "arcface", "center": {"weight": 0.01}}
    train = {"steps": 60, "evaluate_every": 0, "checkpoint_every": 1000}
    parts = {"loss": loss, "train": train, "parallel.precision": "fp16"}
    return small_spec(images, **(parts | changes))


def worker(spec: JobSpec, folder: Path, resume: int | None = None, model: nn.Module | None = None) -> Worker:
    return Worker(Job(spec, folder, folder, resume, None, model), Group(0, 1, 8), torch.device("cpu"))


def run(one: Worker, until: int) -> list[StepReport]:
    reports: list[StepReport] = []

    def after(report: StepReport) -> bool:
        reports.append(report)
        return True

    one.trainer.run(until, after)
    return reports


def copies(one: Worker) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in one.trainer.state.tensors().items()}


def test_the_scale_moves_as_that_of_torch() -> None:
    overflows = torch.rand(9000, generator=torch.Generator().manual_seed(0)) < 0.0004
    scale, tracker = torch.tensor(INITIAL), torch.tensor(0, dtype=torch.int32)
    ours = LossScaler()
    seen = set()
    for overflow in overflows:
        torch._amp_update_scale_(scale, tracker, overflow.float(), 2.0, 0.5, INTERVAL)
        if overflow:
            ours.after_skip(back_off=True)
        else:
            ours.after_step()
        assert (float(ours.scale), int(ours.grown)) == (float(scale), int(tracker))
        seen.add(float(scale))
    assert min(seen) < INITIAL / 2 and int(overflows.sum()) > 2


def test_a_scale_grows_after_many_good_steps_up_to_its_bound() -> None:
    ours = LossScaler()
    for _ in range(20 * INTERVAL):
        ours.after_step()
    assert float(ours.scale) == 2.0**32


def test_fp16_trains_close_to_float32(images: Path, tmp_path: Path) -> None:
    precise = run(worker(spec_of(images, **{"parallel.precision": "float32"}), tmp_path), 8)
    one = worker(spec_of(images), tmp_path)
    assert one.trainer.state.scaler is not None
    one.trainer.state.scaler.scale.fill_(2.0**2)
    for rough, exact in zip(run(one, 8), precise, strict=True):
        assert rough.loss == pytest.approx(exact.loss, rel=0.02) and rough.loss != exact.loss
        assert rough.gradient_norm == pytest.approx(exact.gradient_norm, rel=0.05)


def test_from_its_initial_value_the_scale_falls_until_steps_are_taken(images: Path, tmp_path: Path) -> None:
    skipped = [report.statistics["skipped"] for report in run(worker(spec_of(images), tmp_path), 16)]
    assert skipped[:2] == [True, True] and skipped.count(False) >= 8


def test_a_scaled_and_unscaled_gradient_is_the_gradient(images: Path, tmp_path: Path) -> None:
    norms = []
    for scale in (2.0**2, 2.0**6):
        one = worker(spec_of(images), tmp_path)
        one.trainer.state.scaler.scale.fill_(scale)  # type: ignore[union-attr]
        norms.append(run(one, 1)[0].gradient_norm)
    assert norms[0] == pytest.approx(norms[1], rel=5e-3)


def test_a_skipped_step_moves_nothing_but_step_and_scale(images: Path, tmp_path: Path) -> None:
    one = worker(spec_of(images), tmp_path)
    state = one.trainer.state
    assert state.scaler is not None
    state.scaler.scale.fill_(2.0**4)
    assert [report.statistics["skipped"] for report in run(one, 3)] == [False] * 3
    before = copies(one)
    state.scaler.scale.fill_(2.0**40)
    (report,) = run(one, 4)
    assert state.step == report.step == 4
    assert report.gradient_norm is None and report.statistics == {"loss_scale": 2.0**39, "skipped": True}
    assert report.loss > 0
    after = copies(one)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"scaler.scale", "scaler.skipped", "scaler.grown"}
    state.scaler.scale.fill_(2.0**4)
    assert not run(one, 5)[0].statistics["skipped"]
    assert {"model.head.weight", "objective.center.centers", "model.backbone.2.running_mean"} <= {
        name for name, value in copies(one).items() if not torch.equal(value, before[name])
    }


def test_a_gradient_that_overflows_at_every_scale_stops_the_run(images: Path, tmp_path: Path) -> None:
    one = worker(spec_of(images), tmp_path)
    one.trainer.model.head.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(
        TrainingDiverged, match=r"step 16: gradients at loss scale 1 overflow float16, after 16 skipped"
    ):
        run(one, 40)
    state = one.trainer.state
    assert state.step == 16 and state.scaler is not None and float(state.scaler.scale) == 1


class Loud(nn.Module):
    """Embeddings by way of numbers that float16 cannot hold while the factor is large."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.factor = nn.Linear(64, 8), 1e7

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.head(inputs.flatten(1) * self.factor)
        return hidden / self.factor


def test_embeddings_that_overflow_float16_alone_skip_the_step_and_leave_the_scale(images: Path, tmp_path: Path) -> None:
    model = Loud()
    float32 = spec_of(images, model=CUSTOM, **{"parallel.precision": "float32"})
    (exact,) = run(worker(float32, tmp_path, model=model), 1)
    one = worker(spec_of(images, model=CUSTOM), tmp_path, model=model)
    loud = one.trainer.model.backbone
    assert isinstance(loud, Loud) and one.trainer.state.scaler is not None
    one.trainer.state.scaler.scale.fill_(2.0**4)
    before = copies(one)
    (report,) = run(one, 1)
    assert report.statistics == {"loss_scale": 2.0**4, "skipped": True} and report.gradient_norm is None
    assert report.loss == exact.loss
    moved = {name for name, value in copies(one).items() if not torch.equal(value, before[name])}
    assert moved == {"scaler.skipped"}
    loud.factor = 1.0
    assert not run(one, 2)[0].statistics["skipped"]
    loud.factor = 1e7
    with pytest.raises(TrainingDiverged, match=rf"embeddings overflow float16, after {LONGEST_RUN} skipped steps"):
        run(one, 60)
    assert one.trainer.state.step == 2 + LONGEST_RUN


class Spoiled(nn.Module):
    """Embeddings of which those of bright images are not numbers, in any precision."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit, self.head = limit, nn.Sequential(nn.Flatten(), nn.Linear(64, 8))

    def forward(self, inputs: Tensor) -> Tensor:
        bright = inputs.mean((1, 2, 3)) > self.limit
        embeddings: Tensor = self.head(inputs).masked_fill(bright.unsqueeze(1), float("nan"))
        return embeddings


def test_an_embedding_that_is_nan_in_float32_too_stops_at_once_and_names_its_item(images: Path, tmp_path: Path) -> None:
    spec = spec_of(images, model=CUSTOM)
    plain = worker(spec, tmp_path, model=Spoiled(float("inf")))
    brightness = {item: float(plain.dataset.tensors([item]).mean()) for item in plain.dataset.indices("train").tolist()}
    batch = plain.dataset.indices("train")[plain.trainer.plan.batch(0)].tolist()
    first, second = sorted({brightness[item] for item in batch})[-1:-3:-1]
    one = worker(spec, tmp_path, model=Spoiled((first + second) / 2))
    with pytest.raises(TrainingDiverged, match="step 0: embeddings are not finite") as caught:
        run(one, 1)
    brightest = max(batch, key=lambda item: brightness[item])
    assert caught.value.data["items"][0] == plain.dataset.items.ids[brightest]


def test_the_scale_is_in_the_digest_and_in_the_checkpoint(images: Path, tmp_path: Path) -> None:
    one = worker(spec_of(images), tmp_path)
    state = one.trainer.state
    assert state.scaler is not None
    before = state.digest()
    state.scaler.scale.mul_(0.5)
    assert state.digest() != before
    state.scaler.grown.fill_(7)
    one.saver.save(one.trainer.state, None, required=True)
    resumed = worker(spec_of(images), tmp_path, resume=0).trainer.state
    assert resumed.digest() == state.digest()
    assert resumed.scaler is not None and (float(resumed.scaler.scale), int(resumed.scaler.grown)) == (2.0**15, 7)
    lacking = {name: value for name, value in state.tensors().items() if name != "scaler.grown"}
    with pytest.raises(CheckpointError, match="belongs to another model or loss"):
        state.load(lacking, 0)


def test_other_precisions_have_no_scale(images: Path, tmp_path: Path) -> None:
    one = worker(spec_of(images, **{"parallel.precision": "bf16"}), tmp_path)
    assert one.trainer.state.scaler is None and not any(name.startswith("scaler") for name in copies(one))
    assert "skipped" not in run(one, 1)[0].statistics
