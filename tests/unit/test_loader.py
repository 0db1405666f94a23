"""Slices: the same pixels whoever prepares them, errors where they are read, and no process left behind."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raydml.data import Dataset, SamplingPlan, Slice, open_dataset, slices
from raydml.errors import DataError
from raydml.spec import ArraysData, AugmentSpec, BatchSpec, ImageFolderData

AUGMENT = AugmentSpec(shift=0.1, rotate=10, scale=0.1, flip=True, brightness=0.2, contrast=0.2, noise=0.05)
BATCH = BatchSpec(classes=4, samples=2, virtual_workers=4)
KEYS = [(step, index) for step in range(3) for index in range(4)]


@pytest.fixture
def spec(tmp_path: Path) -> ArraysData:
    inputs = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", inputs=inputs, labels=np.arange(60) % 12)
    return ArraysData(path=str(tmp_path / "a.npz"), image_size=8, grayscale=True, augment=AUGMENT)


@pytest.fixture
def dataset(spec: ArraysData, tmp_path: Path) -> Dataset:
    return open_dataset(spec, tmp_path)


@pytest.fixture
def plan(dataset: Dataset) -> SamplingPlan:
    return SamplingPlan(dataset.training_labels, BATCH, 1)


def equal(one: Slice, other: Slice) -> bool:
    same = (one.step, one.index, one.items.tolist()) == (other.step, other.index, other.items.tolist())
    return same and torch.equal(one.inputs, other.inputs) and torch.equal(one.labels, other.labels)


def test_a_slice_holds_what_the_plan_says(dataset: Dataset, plan: SamplingPlan, spec: ArraysData) -> None:
    plain = spec.model_copy(update={"augment": AugmentSpec()})
    [piece] = slices(dataset, plan, plain, 1, [(5, 2)], 0)
    positions = plan.slice(5, 2)
    assert (piece.step, piece.index) == (5, 2)
    assert (piece.items == dataset.indices("train")[positions]).all()
    assert piece.labels.tolist() == dataset.training_labels[positions].tolist()
    assert torch.equal(piece.inputs, dataset.tensors(piece.items))
    assert piece.inputs.shape == (2, 1, 8, 8)
    assert (piece.inputs.dtype, piece.labels.dtype) == (torch.float32, torch.int64)


def test_processes_change_neither_pixels_nor_order(dataset: Dataset, plan: SamplingPlan, spec: ArraysData) -> None:
    here = list(slices(dataset, plan, spec, 1, KEYS, 0))
    there = list(slices(dataset, plan, spec, 1, KEYS, 2))
    assert [(piece.step, piece.index) for piece in there] == KEYS
    assert all(equal(one, other) for one, other in zip(here, there, strict=True))
    there[0].inputs.add_(1)  # a slice belongs to its reader


def test_any_order_and_subset_gives_the_same_slices(dataset: Dataset, plan: SamplingPlan, spec: ArraysData) -> None:
    whole = {(piece.step, piece.index): piece for piece in slices(dataset, plan, spec, 1, KEYS, 0)}
    for piece in slices(dataset, plan, spec, 1, [(2, 3), (0, 1), (2, 0), (0, 1)], 0):
        assert equal(piece, whole[piece.step, piece.index])


def test_augmentation_follows_the_seed_and_the_row(dataset: Dataset, plan: SamplingPlan, spec: ArraysData) -> None:
    first = next(slices(dataset, plan, spec, 1, KEYS, 0))
    assert not torch.equal(first.inputs, next(slices(dataset, plan, spec, 2, KEYS, 0)).inputs)
    one_slice = SamplingPlan(dataset.training_labels, BATCH.model_copy(update={"virtual_workers": 1}), 1)
    batch = next(slices(dataset, one_slice, spec, 1, [(0, 0)], 0))
    joined = torch.cat([piece.inputs for piece in slices(dataset, plan, spec, 1, KEYS[:4], 0)])
    assert torch.equal(batch.inputs, joined)


def test_endless_keys_are_read_only_a_little_ahead(dataset: Dataset, plan: SamplingPlan, spec: ArraysData) -> None:
    asked: list[tuple[int, int]] = []

    def endless() -> itertools.chain[tuple[int, int]]:
        for step in itertools.count():
            asked.append((step, 0))
            yield step, 0

    for processes, most in ((0, 5), (2, 10)):
        asked.clear()
        reader = slices(dataset, plan, spec, 1, endless(), processes)
        assert [next(reader).step for _ in range(5)] == [0, 1, 2, 3, 4]
        assert len(asked) <= most
        reader.close()


def children() -> set[int]:
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    return set(map(int, path.read_text().split()))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_are_gone_after_closing_dropping_or_exhausting(
    dataset: Dataset, plan: SamplingPlan, spec: ArraysData
) -> None:
    before = children()
    reader = slices(dataset, plan, spec, 1, itertools.cycle(KEYS), 2)
    next(reader)
    assert len(children() - before) == 2
    reader.close()
    assert children() == before
    dropped = slices(dataset, plan, spec, 1, itertools.cycle(KEYS), 2)
    next(dropped)
    del dropped
    assert children() == before
    list(slices(dataset, plan, spec, 1, KEYS[:2], 2))
    assert children() == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_leave_with_a_killed_parent(spec: ArraysData, tmp_path: Path) -> None:
    script = f"""
import itertools, sys, time
from pathlib import Path
from raydml.data import SamplingPlan, open_dataset, slices
from raydml.spec import ArraysData, BatchSpec
spec = ArraysData.model_validate_json({spec.model_dump_json()!r})
dataset = open_dataset(spec, Path({str(tmp_path)!r}))
plan = SamplingPlan(dataset.training_labels, BatchSpec(classes=4, samples=2, virtual_workers=4), 1)
reader = slices(dataset, plan, spec, 1, itertools.cycle([(0, 0)]), 2)
next(reader)
print("ready", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        loaders = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        parent.send_signal(signal.SIGKILL)
    assert len(loaders) == 2
    deadline = time.monotonic() + 20
    while any(is_running(int(pid)) for pid in loaders):
        assert time.monotonic() < deadline, "loader processes outlive their parent"
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("processes", [0, 2])
def test_a_file_that_goes_bad_is_named_in_the_consumer(
    tmp_path: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["raydml.data.contents"].Decoded.__init__, "__defaults__", (1, 0))  # no memory
    for number in range(12):
        path = tmp_path / "pictures" / f"class {number % 4}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    spec = ImageFolderData(path=str(tmp_path / "pictures"), image_size=8)
    dataset = open_dataset(spec, tmp_path)
    plan = SamplingPlan(dataset.training_labels, BatchSpec(classes=2, samples=3, virtual_workers=1), 0)
    for path in sorted(tmp_path.rglob("*.png")):
        path.write_bytes(b"broken")
    before = children()
    with pytest.raises(DataError, match=r"\.png cannot be decoded as an image \(not an image\)"):
        list(slices(dataset, plan, spec, 0, [(0, 0), (1, 0)], processes))
    assert children() == before


def test_reading_leaves_the_global_random_numbers_alone(dataset: Dataset, plan: SamplingPlan, spec: ArraysData) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(slices(dataset, plan, spec, 1, KEYS, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == legacy).all()
