"""What `raydml.run.train` refuses before Ray starts, and names that do not exist."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raydml.errors import DataError, ResourceError, RunError, RunExists, SpecError
from raydml.run import train
from raydml.runs import find_run, open_collection
from raydml.search import Collection
from raydml.spec import JobSpec
from raydml.training.fleet import placement
from raydml.training.fleet.placement import Placement, place
from raydml.training.record import RunRecord
from tests.distributed.harness import small_spec


class RayStarted(BaseException):
    """Ray would have been started: not an Exception, so that nothing takes it for a failure."""


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*given: Any) -> None:
        raise RayStarted

    monkeypatch.setattr(placement, "cluster", start)


def record_of(home: Path, name: str = "small") -> RunRecord:
    folder = home / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    return RunRecord(folder)


def test_a_job_that_nothing_speaks_against_reaches_ray(images: Path, home: Path) -> None:
    with pytest.raises(RayStarted):
        train(small_spec(images))
    assert record_of(home).read()["spec_digest"] == small_spec(images).digest()


# The name


def test_a_finished_run_is_not_started_again(images: Path, home: Path) -> None:
    record_of(home).change(state="succeeded")
    before = record_of(home).read()
    with pytest.raises(RunExists, match="run small is finished: take another name, or --again"):
        train(small_spec(images))
    assert record_of(home).read() == before


def test_a_finished_run_is_set_aside_by_again(images: Path, home: Path) -> None:
    record_of(home).change(state="succeeded", mark=1)
    with pytest.raises(RayStarted):
        train(small_spec(images), again=True)
    assert record_of(home, "small~1").read()["mark"] == 1
    assert "mark" not in record_of(home).read()


@contextmanager
def held_by_another_process(lease: Path) -> Iterator[None]:
    # Held shared, so that only a caller who asks for it alone is refused.
    program = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_SH);"
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-S", "-c", program, str(lease)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline() == b"held\n"
            yield
        finally:
            process.stdin.close()


@pytest.mark.parametrize("again", [False, True])
def test_a_run_that_another_process_drives_is_left_to_it(images: Path, home: Path, again: bool) -> None:
    record_of(home).change(state="running")
    before = record_of(home).read()
    with (
        held_by_another_process(home / "runs" / ".small.lease"),
        pytest.raises(RunExists, match="being trained by another process"),
    ):
        train(small_spec(images), again=again)
    assert record_of(home).read() == before
    with pytest.raises(RayStarted):  # a lease ends with its process
        train(small_spec(images))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 6},
        {"loss": {"kind": "contrastive"}},
        {"batch": {"classes": 8, "samples": 4, "virtual_workers": 4}},
        {"train": {"steps": 21}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_run_does_not_go_on_under_another_spec(images: Path, home: Path, changes: dict[str, Any]) -> None:
    spec = small_spec(images)
    record_of(home).change(state="interrupted", spec_digest=spec.digest())
    with pytest.raises(SpecError, match=r"run small began with another spec.*spec\.yaml.*--again"):
        train(small_spec(images, **changes))
    assert record_of(home).read()["state"] == "interrupted"


def test_a_run_goes_on_with_other_workers(images: Path, home: Path) -> None:
    record_of(home).change(state="interrupted", spec_digest=small_spec(images).digest())
    with pytest.raises(RayStarted):
        train(small_spec(images, parallel={"workers": 3}))


def test_a_run_does_not_go_on_with_other_data(images: Path, home: Path) -> None:
    spec, record = small_spec(images), record_of(home)
    record.change(state="interrupted", spec_digest=spec.digest(), fingerprint="of other data")
    (record.folder / "checkpoints" / "step-00000004").mkdir(parents=True)
    (record.folder / "data.json").write_text("as it was")
    with pytest.raises(DataError, match="the data changed since this run began"):
        train(spec)
    assert (record.folder / "data.json").read_text() == "as it was"


# What Python hands over


def test_custom_data_without_a_dataset_is_refused(images: Path) -> None:
    document = small_spec(images).model_dump(mode="json") | {"data": {"kind": "custom"}}
    with pytest.raises(SpecError, match=r"raydml\.train\(dataset=\.\.\.\) belong together"):
        train(document)


def test_a_dataset_beside_other_data_is_refused(images: Path) -> None:
    with pytest.raises(SpecError, match=r"raydml\.train\(dataset=\.\.\.\) belong together"):
        train(small_spec(images), dataset=[])


def test_a_custom_backbone_without_a_model_is_refused(images: Path) -> None:
    with pytest.raises(SpecError, match=r"custom needs raydml\.train\(spec, model="):
        train(small_spec(images, model={"backbone": {"kind": "custom"}}))


def test_a_model_beside_another_backbone_is_refused(images: Path) -> None:
    with pytest.raises(SpecError, match="write custom"):
        train(small_spec(images), model=nn.Flatten())


# The data and the batch


def arrays(folder: Path, **changed: Any) -> Path:
    labels = np.repeat(np.arange(20), 6)
    inputs = np.random.default_rng(0).integers(0, 256, (120, 8, 8), dtype=np.uint8)
    np.savez(folder / "changed.npz", **({"inputs": inputs, "labels": labels} | changed))
    return folder / "changed.npz"


def test_more_classes_a_batch_than_training_has_are_refused_with_both_numbers(images: Path) -> None:
    batch = {"classes": 16, "samples": 4, "virtual_workers": 8}
    with pytest.raises(DataError, match=r"batch\.classes = 16 .* training has 12.*lower batch\.classes to 12"):
        train(small_spec(images, batch=batch))


def test_more_samples_of_a_class_than_there_are_are_refused_where_small_classes_drop_out(images: Path) -> None:
    batch = {"classes": 8, "samples": 7, "virtual_workers": 8, "small_classes": "drop"}
    with pytest.raises(DataError, match=r"of which 0 hold at least batch\.samples = 7 images"):
        train(small_spec(images, batch=batch))


def test_sampling_by_category_is_refused_where_the_data_has_none(images: Path) -> None:
    batch = {"classes": 8, "samples": 4, "sampling": {"kind": "hierarchical"}}
    with pytest.raises(DataError, match=r"category of every training item, and 72 of 72 have none: 0, 1, 2, "):
        train(small_spec(images, batch=batch))


def test_a_batch_that_cannot_be_cut_into_slices_is_refused_with_divisors(images: Path) -> None:
    document = small_spec(images).model_dump(mode="json")
    document["batch"]["samples"] = 3
    document["batch"]["virtual_workers"] = 7
    with pytest.raises(SpecError, match=r"8 x 3 = 24 rows cannot be cut into 7 equal slices.*\[1, 2, 3, 4, 6, 8"):
        train(document)


def test_data_without_test_items_is_refused(tmp_path: Path) -> None:
    path = arrays(tmp_path, splits=np.array(["train", "validation"] * 60))
    with pytest.raises(DataError, match=r"test split.*split: test"):
        train(small_spec(path))


def test_data_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.npz"):
        train(small_spec(tmp_path / "nowhere.npz"))


def test_small_cnn_on_vectors_is_refused(tmp_path: Path) -> None:
    path = arrays(tmp_path, inputs=np.zeros((120, 5)))
    with pytest.raises(SpecError, match="use mlp or linear"):
        train(small_spec(path, model={"backbone": {"kind": "small_cnn"}}))


def test_a_part_that_names_no_parameter_is_refused(images: Path) -> None:
    with pytest.raises(SpecError, match=r"train\.optimizer\.parts: \['tail'\]"):
        train(small_spec(images, train={"steps": 2, "optimizer": {"kind": "sgd", "parts": {"tail": 0.1}}}))


def test_a_batch_norm_that_cannot_be_kept_is_refused(images: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8, affine=False))
    with pytest.raises(SpecError, match="affine=True"):
        train(small_spec(images, model={"backbone": {"kind": "custom"}, "dimension": 8}), model=model)


def test_checking_a_job_leaves_the_callers_module_as_it_was(images: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8))
    custom = {"backbone": {"kind": "custom"}, "dimension": 8, "batch_norm": "group", "frozen": ["backbone.1"]}
    with pytest.raises(RayStarted):
        train(small_spec(images, model=custom), model=model)
    assert type(model[2]) is nn.BatchNorm1d
    assert all(parameter.requires_grad for parameter in model.parameters())


# The machine


@pytest.mark.parametrize("kind", ["home", "argument"])
def test_a_home_that_cannot_be_written_is_refused_with_the_way_out(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "file").write_text("")
    root = tmp_path / "file" / "home"
    monkeypatch.setenv("RAYDML_HOME", str(root))
    with pytest.raises(ResourceError, match=r"cannot be written: Not a directory\. Set RAYDML_HOME"):
        train(small_spec(images), home=root if kind == "argument" else None)


def parallel(**fields: Any) -> JobSpec:
    return small_spec(Path("images.npz"), parallel=fields)


@pytest.mark.parametrize(
    ("fields", "cpus", "gpus", "wanted"),
    [
        ({"workers": 2}, 2, 0, Placement(2, False, {"CPU": 1.0}, 2, 2)),
        ({"workers": {"min": 1, "max": 8}}, 3, 0, Placement(3, False, {"CPU": 1.0}, 1, 8)),
        ({"workers": {"min": 1, "max": 8, "cpus": 1.5}}, 4, 0, Placement(2, False, {"CPU": 1.5}, 1, 8)),
        ({"workers": {"min": 1, "max": 8}}, 16, 4, Placement(4, True, {"CPU": 1.0, "GPU": 1.0}, 1, 8)),
        ({"workers": 4, "device": "cpu"}, 16, 2, Placement(4, False, {"CPU": 1.0}, 4, 4)),
        ({"workers": {"min": 1, "max": 8}, "device": "cuda"}, 2, 4, Placement(2, True, {"CPU": 1.0, "GPU": 1.0}, 1, 8)),
    ],
)
def test_as_many_workers_as_fit_are_placed(fields: dict[str, Any], cpus: float, gpus: float, wanted: Placement) -> None:
    assert place(parallel(**fields), cpus, gpus) == wanted


@pytest.mark.parametrize(
    ("fields", "cpus", "gpus", "message"),
    [
        ({"workers": 4}, 2, 0, r"4 workers of 1 CPUs each do not fit: the cluster has 2 CPUs, room for 2"),
        ({"workers": {"min": 2, "max": 2, "cpus": 3}}, 5, 0, r"2 workers of 3 CPUs each .* 5 CPUs, room for 1"),
        ({"workers": 4, "device": "cuda"}, 16, 2, r"1 CPUs and 1 GPU each .* 16 CPUs and 2 GPUs, room for 2"),
        ({"workers": 1, "device": "cuda"}, 16, 0, r"parallel\.device is cuda, and there is no GPU here"),
    ],
)
def test_more_workers_than_fit_are_refused_with_the_numbers(
    fields: dict[str, Any], cpus: float, gpus: float, message: str
) -> None:
    with pytest.raises(ResourceError, match=message):
        place(parallel(**fields), cpus, gpus)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"device": "cuda"}, "there is no GPU here"),
        ({"workers": 4, "device": "cpu"}, "4 workers of 1 CPUs each do not"),
    ],
)
def test_too_small_a_machine_is_refused_before_a_local_ray_starts(
    images: Path, home: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], message: str
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("RAYDML_HOME", str(home))

    def start(*given: Any) -> None:
        raise RayStarted

    monkeypatch.setattr(placement, "_connected", start)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with pytest.raises(ResourceError, match=message):
        train(small_spec(images, parallel=fields))
    facts = record_of(home).read()
    assert facts["state"] == "failed"
    assert message.split(" each")[0] in facts["reason"]


# Names


def test_an_unknown_run_lists_what_there_is(home: Path) -> None:
    with pytest.raises(RunError, match=r"there is no run third under .*runs; there are none"):
        find_run("third")
    for name in ("second", "first"):
        record_of(home, name).change(state="running")
    with pytest.raises(RunError, match=r"there is no run third under .*; there are \['first', 'second'\]"):
        find_run("third")
    assert find_run("first").state == "running"
    assert find_run(home / "runs" / "second").name == "second"


def test_an_unknown_collection_lists_what_there_is(home: Path) -> None:
    with pytest.raises(SpecError, match=r"there is no collection third under .*collections; there are none"):
        open_collection("third")
    for name in ("second", "first"):
        collection = Collection.open(home / "collections" / name, 2)
        collection.upsert(ids=["a"], vectors=np.ones((1, 2), np.float32))
    with pytest.raises(SpecError, match=r"there are \['first', 'second'\]"):
        open_collection("third")
    assert open_collection("first").dimension == 2


def test_a_run_without_an_index_has_no_collection(home: Path) -> None:
    record_of(home).change(state="succeeded")
    with pytest.raises(SpecError, match="run small filled no collection"):
        _ = find_run("small").collection
