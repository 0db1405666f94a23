"""Promise 4 for a run: killed at any step and resumed by another number of workers, it ends with the same bits."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from raydml.parallel import Group
from raydml.spec import JobSpec
from raydml.training.checkpoints import Checkpoints
from raydml.training.record import RunRecord, read_lines
from raydml.training.worker import Job, run_worker
from tests.distributed.harness import CONTEXT, _child, run_processes, small_spec, write_images

STEPS = 40


def spec_of(folder: Path) -> JobSpec:
    return small_spec(
        folder / "images.npz",
        loss={"kind": "arcface", "center": {"weight": 0.01}},
        train={"steps": STEPS, "evaluate_every": 10, "checkpoint_every": 3, "keep_last": 2},
    )


def run_attempt(group: Group, given: tuple[str, str, int | None]) -> str:
    document, folder, resume = given
    spec = JobSpec.model_validate(json.loads(document))
    return run_worker(Job(spec, Path(folder), Path(folder), resume), group, torch.device("cpu"))


def finish(spec: JobSpec, folder: Path, size: int) -> dict[str, Any]:
    """Resume from the last checkpoint, if there is one, and train to the end."""
    steps = Checkpoints(folder / "checkpoints", 2).steps()
    RunRecord(folder).forget_after(steps[-1] if steps else 0)
    given = (spec.model_dump_json(), str(folder), steps[-1] if steps else None)
    assert set(run_processes(size, run_attempt, given, folder)) == {"succeeded"}
    return RunRecord(folder).read()


def kill_at(spec: JobSpec, folder: Path, size: int, step: int) -> None:
    """Start an attempt and SIGKILL all of its processes once it has logged this step."""
    store = str(folder / f"store-kill-{step}")
    given = (spec.model_dump_json(), str(folder), None)
    pipes = [CONTEXT.Pipe() for _ in range(size)]
    processes = [
        CONTEXT.Process(target=_child, args=(rank, size, 8, store, run_attempt, given, pipes[rank][1]))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and all(process.is_alive() for process in processes):
        path = folder / "metrics.jsonl"
        if path.exists() and any(line["step"] >= step for line in read_lines(path)[0]):
            break
        time.sleep(0.005)
    for process in processes:
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join(10)


def check_kills(folder: Path, changes: list[tuple[int, int]]) -> None:
    """For each (workers before, workers after): kill at a random step, resume, compare with the undisturbed run."""
    undisturbed = folder / "undisturbed"
    undisturbed.mkdir()
    spec = spec_of(folder)
    write_images(folder)
    wanted = finish(spec, undisturbed, 2)
    for attempt, (before, after) in enumerate(changes):
        killed = folder / f"killed-{attempt}"
        killed.mkdir()
        kill_at(spec, killed, before, random.SystemRandom().randrange(4, STEPS - 8))
        steps = Checkpoints(killed / "checkpoints", 2).steps()
        assert steps and steps[-1] < STEPS, "the kill came too late to prove anything"
        found = finish(spec, killed, after)
        assert found["state_sha256"] == wanted["state_sha256"]
        assert found["sha256"] == wanted["sha256"]
        assert found["metrics"] == wanted["metrics"]
        logged = [line["step"] for line in read_lines(killed / "metrics.jsonl")[0] if "loss" in line]
        assert logged == list(range(1, STEPS + 1)), "every step is logged once"


def test_a_killed_run_resumed_on_other_workers_ends_with_the_same_bits(tmp_path: Path) -> None:
    check_kills(tmp_path, [(3, 2), (2, 4)])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_so_it_does_for_all_pairs_of_one_to_four_workers(tmp_path: Path) -> None:
    check_kills(tmp_path, list(itertools.product((1, 2, 3, 4), repeat=2)))
