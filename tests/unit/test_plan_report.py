"""Plans counted by hand, checks of a machine, and pictures."""

from __future__ import annotations

import io
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from raydml import doctor
from raydml.cli.tables import plan_table
from raydml.data import open_dataset
from raydml.demo import demo_spec
from raydml.parallel.memory import kept_by_forward
from raydml.plan import Plan, plan
from raydml.report import Row, Tile, draw_curves, draw_neighbours, read_metrics
from raydml.specfile import parse_spec


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """Vectors of length 6: 20 classes of 3."""
    path = tmp_path / "vectors.npz"
    labels = np.repeat(np.arange(20), 3)
    np.savez(path, inputs=np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32), labels=labels)
    return path


def make(arrays: Path, **parts: Any) -> Plan:
    spec = parse_spec(
        {
            "name": "p",
            "data": {"kind": "arrays", "path": str(arrays)},
            "batch": {"classes": 4, "samples": 2, "virtual_workers": 4},
            "model": {"backbone": {"kind": "linear"}, "dimension": 5},
            "loss": {"kind": "triplet"},
            "parallel": {"workers": {"min": 1, "max": 3}},
            **parts,
        }
    )
    return plan(spec, open_dataset(spec.data, arrays.parent))


def test_a_plan_counts_parameters_slices_and_bytes(arrays: Path) -> None:
    made = make(arrays)
    assert made.slices == {1: [[0, 1, 2, 3]], 2: [[0, 1], [2, 3]], 3: [[0], [1], [2, 3]]}
    assert made.parameters == made.trained_parameters == 6 * 5
    assert made.memory is not None
    assert (made.memory.parameters, made.memory.gradients, made.memory.optimizer) == (120, 120, 240)
    activations = made.memory.activations_per_slice
    # two slices: their parameters, three sets of gradients (one slice's and two levels), two moments, two forwards
    assert made.worker_bytes(2) == 120 + 3 * 120 + 240 + 2 * activations
    assert sum(split.images for split in made.splits.values()) == 60
    assert json.loads(json.dumps(made.to_dict()))["batches"]["possible"]


def test_a_plan_shows_the_sizes_a_run_may_have_and_why_there_are_no_more(arrays: Path) -> None:
    made = make(arrays, parallel={"workers": {"min": 2, "max": 9}})
    assert made.world_sizes == [2, 3, 4] and list(made.slices) == [2, 3, 4]
    assert made.rounded_down is not None and "9 workers are rounded down to 4" in made.rounded_down
    assert make(arrays).rounded_down is None
    document = made.to_dict()
    assert (document["world_sizes"], document["rounded_down"]) == ([2, 3, 4], made.rounded_down)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(plan_table(made))
    assert "workers        2 to 4; 9 workers are rounded down to 4: each takes at least one" in console.export_text()


def test_a_plan_follows_precision_and_optimizer(arrays: Path) -> None:
    made = make(arrays, train={"optimizer": {"kind": "sgd", "momentum": 0}}, parallel={"precision": "float64"})
    assert made.memory is not None
    assert (made.memory.parameters, made.memory.optimizer) == (240, 0)


def test_a_plan_says_why_batches_are_impossible(arrays: Path) -> None:
    made = make(arrays, batch={"classes": 64, "samples": 2, "virtual_workers": 4})
    assert made.problem is not None and "batch.classes = 64" in made.problem
    assert made.batches_per_pass == 0


def test_a_plan_leaves_a_custom_model_uncounted(arrays: Path) -> None:
    made = make(arrays, model={"backbone": {"kind": "custom"}})
    assert made.parameters is None and made.memory is None and made.worker_bytes(1) is None


def test_kept_activations_are_the_tensors_that_backward_needs() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 3))
    inputs, hidden = 7 * 10 * 4, 7 * 20 * 4  # the first layer keeps its input, ReLU and the second layer its output
    assert kept_by_forward(model, (7, 10), "float32") == inputs + hidden
    assert torch.is_grad_enabled()


def test_the_demo_spec_fits_its_data_only_in_whole_slices() -> None:
    spec = demo_spec()
    assert (spec.batch.size, spec.batch.slice_size, spec.parallel.workers.max) == (128, 16, 2)


def test_the_doctor_finds_nothing_wrong_with_python_libraries_and_disk(tmp_path: Path) -> None:
    for check in [doctor.python(), *doctor.libraries(), doctor.disk(tmp_path / "not" / "yet" / "there")]:
        assert check.ok, check
    assert doctor.ray_cluster("auto").ok


def test_the_doctor_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    assert not doctor.disk(tmp_path / "file" / "home").ok
    monkeypatch.setattr(doctor, "FREE_BYTES", 2**80)
    assert "RAYDML_HOME" in doctor.disk(tmp_path).way_out and not doctor.disk(tmp_path).ok
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        gone = doctor.ray_cluster(f"127.0.0.1:{closed.getsockname()[1]}")
    assert not gone.ok and "RAY_ADDRESS" in gone.way_out


def test_a_probe_survives_a_library_that_kills_its_process() -> None:
    assert doctor.probe("print('fine')") == (True, "fine")
    assert doctor.probe("import os; os.abort()") == (False, "ended by signal 6")
    assert doctor.probe("raise ImportError('no GPU driver')") == (False, "ImportError: no GPU driver")


def test_hits_are_framed_green_and_misses_red(tmp_path: Path) -> None:
    tiles = [Tile(np.full((8, 8, 1), 255, np.uint8), label) for label in "aab"]
    draw_neighbours([Row(tiles[0], tiles[1:])], tmp_path / "new" / "picture.png")
    with Image.open(tmp_path / "new" / "picture.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    colours = {tuple(pixel) for pixel in pixels.tolist()}
    assert {(0x2A, 0x9D, 0x4A), (0xD1, 0x34, 0x4B)} <= colours


def test_curves_are_read_from_the_metrics_file(tmp_path: Path) -> None:
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "validation": {"map_at_r": 0.5}}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_metrics(tmp_path / "metrics.jsonl") == ([(1, 2.0), (2, 1.0)], [(2, 0.5)])
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png", baseline=0.2)
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size[0] > 500
