"""Watching changes no bit of training, and every worker of every group sees the same health."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from raydml.errors import TrainingDiverged
from raydml.parallel import Group
from raydml.spec import JobSpec
from raydml.training.worker import Job, Worker
from tests.distributed.harness import run_processes, small_spec, write_images

NEVER, OFTEN = {"every": 0}, {"every": 2, "rules": {"collapse": {"spread": 0.99}}}
STOP = {"action": "stop", "spread": 0.99}
LOSSES: tuple[dict[str, Any], ...] = (
    {"kind": "triplet", "margin": 0.2, "miner": {"kind": "semihard"}},
    {"kind": "proxy_anchor"},
)


def watched_cases(group: Group, given: tuple[list[str], str]) -> list[tuple[str, list[Any], str]]:
    """SHA-256 of the state, the health after each step and what stopped the run, for several specs."""
    documents, folder = given
    results = []
    for document in documents:
        spec = JobSpec.model_validate_json(document)
        trainer = Worker(Job(spec, Path(folder), Path(folder), None), group, torch.device("cpu")).trainer
        seen: list[Any] = []
        stopped = ""
        try:
            trainer.run(spec.train.steps, lambda report, seen=seen: seen.append(report.health) is None)  # type: ignore[misc]
        except TrainingDiverged as error:
            stopped = error.message
        results.append((trainer.state.digest(), seen, stopped))
    return results


def test_the_sha256_is_the_same_watched_or_not_for_one_and_two_workers(tmp_path: Path) -> None:
    data = write_images(tmp_path)
    clipped = {"steps": 8, "evaluate_every": 0, "clip_norm": 0.5}
    cases = [small_spec(data, loss=loss, train=clipped, watch=watch) for loss in LOSSES for watch in (NEVER, OFTEN)]
    cases.append(small_spec(data, train=clipped, watch={"every": 4, "rules": {"collapse": STOP}}))
    given = ([spec.model_dump_json() for spec in cases], str(tmp_path))
    by_worker = [result for size in (1, 2) for result in run_processes(size, watched_cases, given, tmp_path)]
    assert len(by_worker) == 3
    assert all(result == by_worker[0] for result in by_worker), "bits or health differ between workers or groups"
    for unwatched, watched in (by_worker[0][:2], by_worker[0][2:4]):
        assert unwatched[0] == watched[0]
        assert not any(health.values for health in unwatched[1])
        looks = [health for health in watched[1] if health.values]
        assert len(looks) == 4 and looks[0].alarms and looks[0].values != looks[1].values
        assert looks[0].values["norm_min"] != looks[0].values["norm_max"], "norms before normalisation"
    _, seen, stopped = by_worker[0][4]
    assert len(seen) == 4 and stopped.startswith("step 4: collapse: "), "all workers stop together"
