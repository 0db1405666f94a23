"""fp16 over workers: one SHA-256 with steps that overflow in the middle, and after a resume."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from raydml.parallel import Group
from raydml.spec import JobSpec
from raydml.training.loop import StepReport
from raydml.training.worker import Job, Worker
from tests.distributed.harness import run_processes, small_spec, write_images
from tests.distributed.test_recompute import MLP

STEPS, SHAKEN, SAVED = 20, 10, 12  # the scale is far too large from step 10 on; a checkpoint after step 12


def spec_of(folder: Path) -> JobSpec:
    return small_spec(
        folder / "images.npz",
        model=MLP,
        loss={"kind": "arcface", "center": {"weight": 0.01}},
        train={"steps": STEPS, "evaluate_every": 0, "clip_norm": 0.5, "schedule": {"kind": "cosine"}},
        **{"parallel.precision": "fp16"},
    )


def train_shaken(group: Group, given: tuple[str, str, int | None]) -> tuple[str, list[bool], list[float]]:
    """The state's SHA-256, and of each step whether it was skipped and the scale after it."""
    document, folder, resume = given
    spec = JobSpec.model_validate(json.loads(document))
    worker = Worker(Job(spec, Path(folder), Path(folder), resume), group, torch.device("cpu"))
    state = worker.trainer.state
    assert state.scaler is not None
    if resume is None:
        state.scaler.scale.fill_(2.0**4)
    skipped: list[bool] = []
    scales: list[float] = []

    def after(report: StepReport) -> bool:
        skipped.append(report.statistics["skipped"])
        scales.append(report.statistics["loss_scale"])
        if report.step == SHAKEN:
            state.scaler.scale.fill_(2.0**20)  # type: ignore[union-attr]
        if report.step == SAVED and resume is None:
            worker.saver.save(state, None, required=True)
        return True

    worker.trainer.run(STEPS, after)
    return state.digest(), skipped, scales


def test_an_overflow_in_the_middle_skips_alike_for_one_to_three_workers_and_a_resume_ends_the_same(
    tmp_path: Path,
) -> None:
    write_images(tmp_path)
    document = spec_of(tmp_path).model_dump_json()
    outcomes = []
    for size in (1, 2, 3):
        folder = tmp_path / str(size)
        folder.mkdir()
        outcomes += run_processes(size, train_shaken, (document, str(folder), None), folder)
    assert len(outcomes) == 6 and all(outcome == outcomes[0] for outcome in outcomes)
    sha, skipped, scales = outcomes[0]
    assert not any(skipped[:SHAKEN]) and not skipped[-1]
    assert all(skipped[SHAKEN : SAVED + 1]), "the checkpoint lies within the run of skips"
    assert scales[-1] == 2.0 ** (20 - sum(skipped))
    for result in run_processes(2, train_shaken, (document, str(tmp_path / "3"), SAVED), tmp_path / "3"):
        assert result == (sha, skipped[SAVED:], scales[SAVED:])
