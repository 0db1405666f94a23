"""Whole runs on a real local Ray: trained, measured, indexed, searched; interrupted, resumed, refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import raydml
from raydml.errors import DataError, RunExists
from raydml.runs import find_run
from raydml.training.record import read_lines
from tests.distributed.harness import write_images
from tests.ray.commands import command, document, wait_for_step

# Ray warns of its own deprecations while it is imported and used: they are not ours to mend.
pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("shared_ray"),
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("default"),
]


def test_one_spec_from_data_to_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path)
    monkeypatch.chdir(tmp_path)
    spec = document(Path("images.npz"), "whole")
    seen: list[int] = []
    run = raydml.train(spec, listen=lambda progress: seen.append(progress.step))
    assert run.state == "succeeded" and run.exactness == "bitwise"
    assert run.world_size_history == [{"step": 0, "workers": 2}]
    assert run.metrics["map_at_r"] > 0 and run.baseline["queries"] == run.metrics["queries"]
    assert seen[-1] == 30
    assert (
        f"| map_at_r | {run.baseline['map_at_r']:.4f} | {run.metrics['map_at_r']:.4f} |"
        in (run.model / "README.md").read_text()
    )
    collection = run.collection
    assert collection.count() == run.metrics["queries"]
    item = collection.ids[0]
    assert item not in [hit.id for hit in collection.search(ids=[item], k=5)[0]]
    again = raydml.evaluate("whole")
    assert again["metrics"] == pytest.approx(run.metrics, rel=1e-6)
    for name, (low, high) in again["intervals"].items():
        assert run.intervals[name] == pytest.approx([low, high], rel=1e-6) and low <= run.metrics[name] <= high
    assert "map_at_r" in again["intervals"]
    with pytest.raises(RunExists, match="--again"):
        raydml.train(spec)
    once_more = raydml.train(spec, again=True)
    assert once_more.sha256 == run.sha256
    assert (run.folder.parent / "whole~1" / "run.json").exists()


class Vectors(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """A person's own data: 20 classes of six vectors."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.targets = torch.arange(20).repeat_interleave(6)
        prototypes = torch.randn(20, 12, generator=generator)
        self.rows = prototypes[self.targets] + 0.5 * torch.randn(120, 12, generator=generator)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.rows[index], int(self.targets[index])


def test_a_users_own_dataset_and_module_train_too(tmp_path: Path) -> None:
    spec = document(
        tmp_path,
        "own",
        data={"kind": "custom"},
        model={"backbone": {"kind": "custom"}, "dimension": 4},
        train={"steps": 6, "evaluate_every": 3, "checkpoint_every": 3},
    )
    module = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    run = raydml.train(spec, dataset=Vectors(), model=module)
    assert run.state == "succeeded"
    embedder = raydml.load_model(run.model, module=module)
    assert embedder.embed(Vectors().rows[:3].numpy()).shape == (3, 4)
    hits = run.collection.search(images=Vectors().rows[:2].numpy(), k=3)
    assert [len(row) for row in hits] == [3, 3]


@pytest.mark.slow  # two minutes; without Ray it is `test_kill_and_resume` of the real processes
def test_interrupted_and_resumed_on_other_workers_it_ends_with_the_same_bits(tmp_path: Path, home: Path) -> None:
    data = write_images(tmp_path)
    long = {"steps": 400, "evaluate_every": 100, "checkpoint_every": 100}
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(document(data, "stopped", train=long)))
    process = command(path, home)
    folder = home / "runs" / "stopped"
    wait_for_step(folder, 20, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the command
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    stopped = find_run("stopped")
    assert stopped.state == "interrupted"
    steps = [line["step"] for line in read_lines(folder / "metrics.jsonl")[0]]
    assert 20 <= steps[-1] < 400
    assert (folder / "checkpoints" / f"step-{steps[-1]:08d}").exists(), "the step of the interruption is kept"

    process = command(path, home, "--set", "parallel.workers=1")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    resumed = json.loads(output)
    assert [entry["workers"] for entry in resumed["world_size_history"]] == [2, 1]
    assert resumed["world_size_history"][1]["step"] == steps[-1]

    undisturbed = raydml.train(document(data, "undisturbed", train=long))
    assert resumed["state_sha256"] == undisturbed.facts["state_sha256"]
    assert resumed["sha256"] == undisturbed.sha256


def test_an_error_in_a_worker_reaches_the_caller_by_name(tmp_path: Path) -> None:
    spec = document(write_images(tmp_path), "explodes")
    spec["train"]["loss_limit"] = 1e-9
    with pytest.raises(raydml.errors.TrainingDiverged, match=r"train\.loss_limit"):
        raydml.train(spec)
    assert find_run("explodes").state == "failed"


def test_data_that_changed_under_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    spec = document(write_images(tmp_path), "changed")
    spec["train"]["loss_limit"] = 1e-9
    with pytest.raises(raydml.errors.TrainingDiverged):
        raydml.train(spec)
    run = find_run("changed")
    run_json = run.folder / "run.json"
    facts = json.loads(run_json.read_text())
    run_json.write_text(json.dumps(facts | {"fingerprint": "another"}))
    (run.folder / "checkpoints" / "step-00000001").mkdir(parents=True)
    with pytest.raises(DataError, match="changed"):
        raydml.train(spec)
