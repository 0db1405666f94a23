"""The formulas of docs/scaling.md against what the kernel counts on the sockets of each worker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from raydml.models import build_model
from raydml.parallel import Group
from raydml.parallel.estimate import Candidate, candidates, facts_of, measured
from raydml.spec import JobSpec, MeshSpec
from raydml.training.process_group import bytes_sent
from raydml.training.worker import Job, Worker
from tests.distributed.harness import on_its_mesh, run_processes, small_spec, write_images

pytestmark = pytest.mark.timeout(600)

VIT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "patch_size": 4}
VIT |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MESHES: dict[str, dict[str, Any]] = {
    "ddp": {"numerics": "fast"},
    "fsdp": {"memory": "recompute"},
    "tensor": {"mesh": {"tensor": 2}, "memory": "recompute"},
    "pipeline": {"mesh": {"pipeline": 2}},
}


def spec_of(folder: Path, strategy: str) -> JobSpec:
    return small_spec(
        folder / "images.npz",
        batch={"classes": 8, "samples": 4, "virtual_workers": 4},
        model={"backbone": {"kind": "transformers", "architecture": "ViTModel", "config": VIT}, "dimension": 8},
        loss={"kind": "contrastive"},
        parallel={"workers": 2, "strategy": strategy, **MESHES[strategy]},
    )


def count(group: Group, given: tuple[dict[str, str], str]) -> dict[str, int]:
    """Bytes of a step of each strategy, the mean of two after the first."""
    documents, folder = given
    found = {}
    for name, document in documents.items():
        spec = JobSpec.model_validate(json.loads(document))
        own = on_its_mesh(group, spec)
        worker = Worker(Job(spec, Path(folder), Path(folder), None), own, torch.device("cpu"))
        worker.trainer.run(1, lambda report: True)
        group.vote()
        before = bytes_sent()
        worker.trainer.run(3, lambda report: True)
        found[name] = (bytes_sent() - before) // 2
        group.vote()
    return found


def estimate(folder: Path, strategy: str, workers: int) -> Candidate:
    spec = spec_of(folder, strategy)
    model = build_model(spec.model, (1, 8, 8), spec.seed)
    facts = facts_of(spec, model, measured(spec, model, torch.float32), torch.device("cpu"))
    (found,) = (
        candidate
        for candidate in candidates(facts, workers)
        if candidate.strategy == strategy and candidate.mesh.cell == spec.parallel.mesh.cell
    )
    assert found.impossible is None and found.mesh == MeshSpec(**MESHES[strategy].get("mesh", {}))
    return found


def test_each_strategy_sends_what_its_formula_says(tmp_path: Path) -> None:
    write_images(tmp_path)
    documents = {strategy: spec_of(tmp_path, strategy).model_dump_json() for strategy in MESHES}
    counted = run_processes(2, count, (documents, str(tmp_path)), tmp_path, slices=4)
    for strategy in MESHES:
        most = max(worker[strategy] for worker in counted)
        assert most == pytest.approx(estimate(tmp_path, strategy, 2).sent, rel=0.1), strategy
