"""The training state: schedule, learning rates by part, clipping, digest, and checkpoints that appear whole."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from raydml.errors import CheckpointError, ResourceError, SpecError
from raydml.losses import Objective
from raydml.models import build_model
from raydml.spec import JobSpec, ScheduleSpec
from raydml.training.checkpoints import Best, Checkpoints
from raydml.training.state import TrainingState, learning_rate_factor
from tests.distributed.harness import small_spec

OPTIMIZERS: list[dict[str, Any]] = [
    {"kind": "sgd"},
    {"kind": "sgd", "nesterov": True, "weight_decay": 0.1},
    {"kind": "sgd", "momentum": 0.0},
    {"kind": "adam"},
    {"kind": "adamw"},
]


def spec_of(train: dict[str, Any] | None = None, **changes: Any) -> JobSpec:
    loss = {"kind": "arcface", "center": {"weight": 0.01}}
    section = {"steps": 20} | (train or {})
    return small_spec(Path("images.npz"), **({"loss": loss, "train": section} | changes))


def state_of(spec: JobSpec) -> TrainingState:
    model = build_model(spec.model, (1, 8, 8), spec.seed)
    objective = Objective(spec.loss, num_classes=12, dimension=8, seed=spec.seed, dtype=torch.float32)
    return TrainingState(model, objective, spec)


def gradients(state: TrainingState, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(parameter.shape, generator=generator) for parameter in state.parameters]


def trained(spec: JobSpec, steps: int = 3) -> TrainingState:
    state = state_of(spec)
    for step in range(steps):
        state.update(gradients(state, step))
    return state


# Learning rates


def schedule(**fields: Any) -> ScheduleSpec:
    return TypeAdapter(ScheduleSpec).validate_python(fields)


def test_a_constant_rate_is_constant() -> None:
    assert {learning_rate_factor(schedule(), step, 10) for step in range(10)} == {1.0}


def test_warm_up_rises_in_equal_parts_to_one() -> None:
    factors = [learning_rate_factor(schedule(warmup_steps=4), step, 10) for step in range(6)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_a_cosine_begins_at_one_passes_the_middle_and_ends_at_the_final_factor() -> None:
    cosine = schedule(kind="cosine", final_factor=0.2)
    assert learning_rate_factor(cosine, 0, 11) == 1.0
    assert learning_rate_factor(cosine, 5, 11) == pytest.approx(0.6)
    assert learning_rate_factor(cosine, 10, 11) == pytest.approx(0.2, abs=1e-15)


def test_a_cosine_after_warm_up_starts_at_one_and_never_rises() -> None:
    cosine = schedule(kind="cosine", warmup_steps=3)
    factors = [learning_rate_factor(cosine, step, 20) for step in range(20)]
    assert factors[2] == factors[3] == 1.0
    assert factors[3:] == sorted(factors[3:], reverse=True)
    assert factors[-1] == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (1, 1), (5, 5), (9, 5), (4, 5)])
def test_the_shortest_runs_have_a_rate_at_every_step(warmup: int, steps: int) -> None:
    cosine = schedule(kind="cosine", warmup_steps=warmup, final_factor=0.5)
    assert all(0 < learning_rate_factor(cosine, step, steps) <= 1 for step in range(steps))


def rates(state: TrainingState) -> dict[str, float]:
    names = {id(value): f"model.{name}" for name, value in state.model.named_parameters()}
    names |= {id(value): f"objective.{name}" for name, value in state.objective.named_parameters()}
    assert state.optimizer is not None
    return {names[id(value)]: group["lr"] for group in state.optimizer.param_groups for value in group["params"]}


def test_each_part_learns_at_the_rate_of_its_longest_prefix() -> None:
    parts = {"backbone": 0.5, "backbone.1.weight": 0.25, "loss": 10.0}
    found = rates(trained(spec_of({"optimizer": {"kind": "sgd", "lr": 0.1, "parts": parts}}), 1))
    assert found.pop("model.backbone.1.weight") == pytest.approx(0.025)
    for name, rate in found.items():
        factor = 0.5 if name.startswith("model.backbone.") else 10.0 if name.startswith("objective.") else 1.0
        assert rate == pytest.approx(0.1 * factor), name
    assert any(name.startswith("objective.") for name in found)


def test_the_schedule_moves_all_parts_together() -> None:
    train = {
        "steps": 10,
        "schedule": {"kind": "cosine", "warmup_steps": 2},
        "optimizer": {"kind": "adam", "lr": 0.1, "parts": {"loss": 10.0}},
    }
    state = state_of(spec_of(train))
    for step in range(10):
        state.update(gradients(state))
        factor = learning_rate_factor(state.spec.train.schedule, step, 10)
        for name, rate in rates(state).items():
            assert rate == pytest.approx(factor * (1.0 if name.startswith("objective.") else 0.1)), name


def test_a_factor_of_zero_leaves_a_part_as_it_is() -> None:
    spec = spec_of({"optimizer": {"kind": "sgd", "parts": {"head": 0.0}}})
    head = state_of(spec).model.head.weight
    state = trained(spec)
    assert torch.equal(state.model.head.weight, head)
    assert not torch.equal(state.model.backbone[1].weight, state_of(spec).model.backbone[1].weight)


@pytest.mark.parametrize("prefix", ["heat", "head.weigh", "model.head", "objective"])
def test_a_part_that_names_nothing_is_refused_with_names_that_exist(prefix: str) -> None:
    with pytest.raises(SpecError, match=rf"train\.optimizer\.parts: \['{prefix}'\] name no .*backbone\.1\.weight"):
        state_of(spec_of({"optimizer": {"kind": "sgd", "parts": {"head": 1.0, prefix: 0.5}}}))


def test_the_part_loss_is_refused_where_the_loss_has_no_weights() -> None:
    with pytest.raises(SpecError, match=r"\['loss'\] name no trained parameter"):
        state_of(spec_of({"optimizer": {"kind": "sgd", "parts": {"loss": 2.0}}}, loss={"kind": "triplet"}))


# A step


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip_norm", [None, 0.5, 1e6])
def test_a_step_is_that_of_torch_with_its_clipping(optimizer: dict[str, Any], clip_norm: float | None) -> None:
    state = state_of(spec_of({"optimizer": {"lr": 0.01} | optimizer, "clip_norm": clip_norm}))
    spec = state.spec.train.optimizer
    plain = [parameter.detach().clone().requires_grad_() for parameter in state.parameters]
    options = spec.model_dump(exclude={"kind", "parts"})
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[spec.kind]
    other = kind(plain, **options)
    for step in range(3):
        for parameter, gradient in zip(plain, gradients(state, step), strict=True):
            parameter.grad = gradient.clone()
        wanted = torch.nn.utils.clip_grad_norm_(plain, clip_norm or float("inf"))
        other.step()
        assert state.update(gradients(state, step)) == float(wanted)
    assert state.step == 3
    assert all(torch.equal(a, b) for a, b in zip(state.parameters, plain, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_gradient_that_is_not_finite_changes_nothing(
    value: float, clip_norm: float | None, optimizer: dict[str, Any]
) -> None:
    state = trained(spec_of({"optimizer": optimizer, "clip_norm": clip_norm}))
    before = state.digest()
    broken = gradients(state)
    broken[1].view(-1)[0] = value
    assert not torch.isfinite(torch.tensor(state.update(broken)))
    assert (state.digest(), state.step) == (before, 3)
    state.update(gradients(state, 3))
    assert state.digest() == trained(state.spec, 4).digest()


def test_a_state_without_parameters_only_counts_its_steps() -> None:
    spec = spec_of(loss={"kind": "triplet"}, model={"backbone": {"kind": "linear"}, "dimension": 8, "frozen": ["head"]})
    state = state_of(spec)
    assert state.update([]) == 0.0
    assert state.step == 1


# Digest


def test_the_digest_changes_with_any_bit_of_any_tensor() -> None:
    state = trained(spec_of({"optimizer": {"kind": "adam"}}))
    before = state.digest()
    for name, value in state.tensors().items():
        with torch.no_grad():
            kept = value.detach().clone()
            raw = value.detach().view(-1).view(torch.uint8)
            raw[-1] ^= 1
            assert state.digest() != before, name
            value.detach().copy_(kept)
        assert state.digest() == before


def test_the_digest_holds_model_buffers_centres_and_optimiser_slots() -> None:
    names = set(trained(spec_of({"optimizer": {"kind": "adam"}})).tensors())
    assert {"model.backbone.2.running_mean", "model.backbone.2.num_batches_tracked", "model.head.weight"} <= names
    assert {"objective.center.centers", "optimizer.model.head.weight.exp_avg_sq"} <= names
    assert any(name.startswith("optimizer.objective.term.") for name in names)


def test_the_digest_changes_with_the_step_and_the_seed() -> None:
    state, other = trained(spec_of()), trained(spec_of())
    assert state.digest() == other.digest()
    other.step += 1
    assert state.digest() != other.digest()
    other = trained(spec_of())
    other.spec = spec_of(seed=6)
    assert state.digest() != other.digest()


def test_the_digest_does_not_depend_on_the_order_of_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    state = trained(spec_of())
    before, tensors = state.digest(), state.tensors()
    monkeypatch.setattr(state, "tensors", lambda: dict(reversed(tensors.items())))
    assert state.digest() == before


# Checkpoints


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_checkpoint_gives_back_the_state_and_its_future(tmp_path: Path, optimizer: dict[str, Any]) -> None:
    spec = spec_of({"optimizer": optimizer})
    state, checkpoints = trained(spec), Checkpoints(tmp_path, 2)
    checkpoints.save(state, Best(2, 0.5))
    fresh = state_of(spec)
    header = checkpoints.load(3, fresh)
    assert (fresh.digest(), fresh.step) == (state.digest(), 3)
    assert (header.state_sha256, header.step, header.seed, header.best) == (state.digest(), 3, 5, Best(2, 0.5))
    for one in (state, fresh):
        one.update(gradients(one, 9))
    assert fresh.digest() == state.digest()


def test_the_last_checkpoints_and_the_best_one_are_kept(tmp_path: Path) -> None:
    state, checkpoints = state_of(spec_of()), Checkpoints(tmp_path, 2)
    kept = []
    for step in range(1, 7):
        state.update(gradients(state, step))
        checkpoints.save(state, Best(2, 0.9) if step >= 2 else Best(1, 0.1))
        kept.append(checkpoints.steps())
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [2, 5, 6]]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:08d}" for step in (2, 5, 6)]


def saved(folder: Path, steps: int = 1) -> Checkpoints:
    checkpoints, state = Checkpoints(folder, 5), state_of(spec_of())
    for step in range(steps):
        state.update(gradients(state, step))
        checkpoints.save(state, None)
    return checkpoints


@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_flipped_bit_is_refused_with_the_file_and_the_way_out(tmp_path: Path, place: int) -> None:
    checkpoints = saved(tmp_path, 2)
    path = checkpoints.path(2) / "state.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    fresh = state_of(spec_of())
    before = fresh.digest()
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load(2, fresh)
    assert f"{path} is damaged" in str(caught.value)
    assert f"Remove {checkpoints.path(2)} to resume from step 1." in str(caught.value)
    assert fresh.digest() == before


def test_damage_of_the_only_checkpoint_says_to_start_anew(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    (checkpoints.path(1) / "state.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no earlier checkpoint: start anew"):
        checkpoints.load(1, state_of(spec_of()))


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"step": 1, "best": null}', '{"best": 3}'])
def test_a_broken_header_is_refused(tmp_path: Path, content: str) -> None:
    checkpoints = saved(tmp_path)
    (checkpoints.path(1) / "checkpoint.json").write_text(content)
    with pytest.raises(CheckpointError, match="is not a readable checkpoint"):
        checkpoints.load(1, state_of(spec_of()))


@pytest.mark.parametrize("name", ["state.safetensors", "checkpoint.json"])
def test_a_checkpoint_that_lacks_a_file_is_refused(tmp_path: Path, name: str) -> None:
    checkpoints = saved(tmp_path)
    (checkpoints.path(1) / name).unlink()
    with pytest.raises(CheckpointError, match=str(checkpoints.path(1))):
        checkpoints.load(1, state_of(spec_of()))


def test_a_checkpoint_of_another_spec_is_refused(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    with pytest.raises(CheckpointError, match="belongs to a job with another spec"):
        checkpoints.load(1, state_of(spec_of({"optimizer": {"kind": "adam"}})))


def test_a_state_of_another_form_is_refused(tmp_path: Path) -> None:
    state = trained(spec_of(), 1)
    other = state_of(spec_of(loss={"kind": "triplet"}))
    with pytest.raises(CheckpointError, match="belongs to another model or loss"):
        other.load(state.tensors(), 1)


@contextmanager
def full_when_synced() -> Iterator[None]:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        yield


@contextmanager
def full_when_written() -> Iterator[None]:
    """A real limit: no file of this process may grow beyond 2 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("full_disk", [full_when_synced, full_when_written])
def test_a_full_disk_leaves_the_old_checkpoint_and_says_so(tmp_path: Path, full_disk: Any) -> None:
    checkpoints = Checkpoints(tmp_path, 1)
    state = trained(spec_of(), 1)
    checkpoints.save(state, None)
    old = state.digest()
    state.update(gradients(state))
    with pytest.raises(ResourceError, match=r"cannot write .*MiB are free there"), full_disk():
        checkpoints.save(state, None)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    fresh = state_of(spec_of())
    checkpoints.load(1, fresh)
    assert fresh.digest() == old
    checkpoints.save(state, None)
    assert checkpoints.steps() == [2]


def test_nothing_in_a_header_depends_on_the_workers(tmp_path: Path) -> None:
    header = json.loads((saved(tmp_path).path(1) / "checkpoint.json").read_text())
    assert set(header) == {"step", "seed", "spec_digest", "state_sha256", "file_sha256", "best", "parts"}
    other = spec_of(parallel={"workers": {"min": 2, "max": 3}})
    assert header["spec_digest"] == other.digest()
