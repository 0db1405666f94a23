"""Strategies that share a model out, against one process that holds all of it: float64, to 1e-9."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydml.parallel import Group
from raydml.spec import JobSpec
from raydml.training.record import RunRecord, read_lines
from raydml.training.worker import Job, Worker
from tests.distributed.elastic_harness import elastic_run
from tests.distributed.harness import on_its_mesh, run_processes, small_spec, write_images

pytestmark = pytest.mark.timeout(600)

LOSSES: dict[str, dict[str, Any]] = {
    "contrastive": {"kind": "contrastive"},
    "triplet, semihard": {"kind": "triplet", "margin": 0.2, "miner": {"kind": "semihard"}},
    "SupCon": {"kind": "sup_con"},
    "ArcFace": {"kind": "arcface"},
    "center": {"kind": "multi_similarity", "center": {"weight": 0.01}},
}
VIT = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "patch_size": 4},
    **{"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.0},
}
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"backbone": {"kind": "mlp", "hidden": [24, 12], "dropout": 0.1}, "dimension": 8},
    "cnn": {"backbone": {"kind": "small_cnn", "width": 16, "dropout": 0.1}, "dimension": 8},
    "vit": {"backbone": {"kind": "transformers", "architecture": "ViTModel", "config": VIT}, "dimension": 8},
}
# What rounding alone could move has a gradient of 0 in exact arithmetic: an attention's key bias, magnified by AdamW.
SGD = {"kind": "sgd", "lr": 0.1, "momentum": 0.9}
STEPS = 4


def spec_of(folder: Path, loss: str, model: str, steps: int = STEPS, **parallel: Any) -> JobSpec:
    return small_spec(
        folder / "images.npz",
        batch={"classes": 6, "samples": 6, "virtual_workers": 9},
        loss=LOSSES[loss],
        model=MODELS[model],
        train={
            "steps": steps,
            "evaluate_every": 0,
            "clip_norm": 0.5,
            "optimizer": SGD if model == "vit" else {"kind": "adamw"},
        },
        parallel={"workers": {"min": 1, "max": 4}, "precision": "float64", "memory": "keep", **parallel},
    )


def worker_of(group: Group, spec: JobSpec, folder: Path) -> Worker:
    return Worker(Job(spec, folder, folder, None), on_its_mesh(group, spec), torch.device("cpu"))


def train(worker: Worker, until: int) -> dict[str, Any]:
    """What there is to compare after these steps: the state, the curve, the test split's embeddings."""
    reports: list[Any] = []

    def after(report: Any) -> bool:
        reports.append(report)
        return True

    worker.trainer.run(until, after)
    capture = worker.trainer.state.capture()
    return {
        "losses": [report.loss for report in reports],
        "norms": [report.gradient_norm for report in reports],
        "tensors": {name: value.clone().numpy() for name, value in capture.tensors.items()},
        "embeddings": worker._embed(worker.dataset.indices("test")),
        "held": sum(parameter.numel() for parameter in worker.trainer.strategy.parameters),
    }


def train_all(group: Group, given: tuple[dict[str, str], str]) -> dict[str, dict[str, Any]]:
    """Several specs, each on its own mesh of the same processes."""
    documents, folder = given
    specs = {name: JobSpec.model_validate(json.loads(document)) for name, document in documents.items()}
    return {name: train(worker_of(group, spec, Path(folder)), STEPS) for name, spec in specs.items()}


def assert_equal(found: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    for name in ("losses", "norms", "embeddings"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-9, atol=1e-9, err_msg=f"{where}: {name}")
    if where.endswith("worker 0"):  # the one who has the whole state
        assert found["tensors"].keys() == wanted["tensors"].keys(), where
    for name in found["tensors"]:
        value = wanted["tensors"][name]
        np.testing.assert_allclose(found["tensors"][name], value, rtol=1e-9, atol=1e-9, err_msg=f"{where}: {name}")


Case = tuple[str, str]  # a loss and a model
EVERY_LOSS = [(loss, "mlp") for loss in LOSSES]
MODELS_TOO = [*EVERY_LOSS, ("triplet, semihard", "cnn"), ("contrastive", "vit")]
ALL = [*MODELS_TOO, ("triplet, semihard", "mlp"), ("ArcFace", "cnn")]


def tensor(size: int) -> dict[str, Any]:
    return {"strategy": "tensor", "mesh": {"tensor": size}}


def pipeline(size: int, **schedule: Any) -> dict[str, Any]:
    return {"strategy": "pipeline", "mesh": {"pipeline": size}, **({"pipeline": schedule} if schedule else {})}


FSDP: dict[str, Any] = {"strategy": "fsdp"}
TRIPLET = [("triplet, semihard", "mlp")]
# By number of workers: what runs on them, each with its cases. Nine slices are uneven for two and for four.
FORMS: dict[int, list[tuple[dict[str, Any], list[Case]]]] = {
    1: [(FSDP, EVERY_LOSS), (tensor(2), EVERY_LOSS), (pipeline(2), EVERY_LOSS)],
    2: [
        (FSDP, MODELS_TOO),
        (tensor(2), MODELS_TOO),
        (pipeline(2), MODELS_TOO),
        (pipeline(2, schedule="gpipe", split=[3, 2]), TRIPLET),
        (pipeline(2, schedule="interleaved", stages=2), [("triplet, semihard", "cnn")]),
        (pipeline(2, schedule="zero_bubble"), TRIPLET),
    ],
    3: [
        (FSDP, EVERY_LOSS),
        (tensor(3), EVERY_LOSS),
        (pipeline(3), [*EVERY_LOSS, ("ArcFace", "cnn")]),
        (pipeline(3, split=[1, 3, 1]), TRIPLET),
    ],
    4: [(FSDP, EVERY_LOSS), (tensor(2), EVERY_LOSS), (pipeline(2), [*EVERY_LOSS, ("ArcFace", "cnn")])],
}


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The folder with the data, and by loss and model what one process has that holds all of the model."""
    folder = tmp_path_factory.mktemp("one-process")
    write_images(folder)
    documents = {f"{loss}, {model}": spec_of(folder, loss, model).model_dump_json() for loss, model in ALL}
    return folder, train_all(Group(0, 1, 9), (documents, str(folder)))


@pytest.mark.parametrize("size", FORMS)
def test_each_strategy_is_one_process_for_each_loss(
    one_process: tuple[Path, dict[str, dict[str, Any]]], size: int
) -> None:
    folder, wanted = one_process
    cases = {
        f"{json.dumps(form)}: {loss}, {model}": (spec_of(folder, loss, model, **form).model_dump_json(), loss, model)
        for form, members in FORMS[size]
        for loss, model in members
    }
    documents = {name: document for name, (document, _, _) in cases.items()}
    for rank, found in enumerate(run_processes(size, train_all, (documents, str(folder)), folder)):
        for name, (_, loss, model) in cases.items():
            want = wanted[f"{loss}, {model}"]
            assert_equal(found[name], want, f"{name}, {size} workers, worker {rank}")
            assert want["losses"][0] != want["losses"][-1], name
            assert size == 1 or found[name]["held"] < want["held"], f"{name}, {size} workers: all is held"


def test_bfloat16_stays_near_one_process(tmp_path: Path) -> None:
    write_images(tmp_path)
    forms: dict[str, dict[str, Any]] = {
        "fsdp": {"strategy": "fsdp"},
        "tensor": {"strategy": "tensor", "mesh": {"tensor": 2}, "memory": "auto"},
        "pipeline": {"strategy": "pipeline", "mesh": {"pipeline": 2}},
    }

    def document(**parallel: Any) -> str:
        return spec_of(tmp_path, "contrastive", "vit", **{**parallel, "precision": "bf16"}).model_dump_json()

    wanted = train_all(Group(0, 1, 9), ({"ddp": document()}, str(tmp_path)))["ddp"]
    documents = {name: document(**form) for name, form in forms.items()}
    for found in run_processes(2, train_all, (documents, str(tmp_path)), tmp_path):
        for name in forms:
            np.testing.assert_allclose(found[name]["losses"], wanted["losses"], rtol=0.02, err_msg=name)
            np.testing.assert_allclose(found[name]["norms"], wanted["norms"], rtol=0.1, err_msg=name)


def hand_over(group: Group, given: tuple[list[str], str]) -> list[dict[str, Any]]:
    """Each spec goes on from the checkpoint of the one before, two steps more."""
    documents, folder = given
    found = []
    for number, document in enumerate(documents):
        worker = worker_of(group, JobSpec.model_validate(json.loads(document)), Path(folder))
        if number:
            worker.restore(2 * number)
        found.append(train(worker, 2 * number + 2))
        worker.saver.save(worker.trainer.state, None, required=True)
    return found


def test_each_strategy_goes_on_from_what_another_saved_in_a_grid_of_two_by_two_too(tmp_path: Path) -> None:
    write_images(tmp_path)
    forms: list[dict[str, Any]] = [
        {"strategy": "fsdp", "mesh": {"shard": 2}},
        {"strategy": "ddp"},
        {"strategy": "tensor", "mesh": {"tensor": 2}},
        {"strategy": "pipeline", "mesh": {"pipeline": 2, "tensor": 2}},
        {"strategy": "pipeline", "mesh": {"pipeline": 2}},
        {"strategy": "fsdp", "offload": True, "memory": "recompute"},
        {"strategy": "fsdp", "memory": "auto"},
    ]
    specs = [spec_of(tmp_path, "ArcFace", "cnn", steps=14, **form) for form in forms]
    alone = worker_of(Group(0, 1, 9), spec_of(tmp_path, "ArcFace", "cnn", steps=14), tmp_path)
    wanted = [train(alone, 2 * number) for number in range(1, len(forms) + 1)]
    for rank, found in enumerate(
        run_processes(4, hand_over, ([s.model_dump_json() for s in specs], str(tmp_path)), tmp_path)
    ):
        for form, got, want in zip(forms, found, wanted, strict=True):
            assert_equal(got, want, f"{form}, worker {rank}")


@pytest.mark.slow
def test_workers_of_fsdp_come_and_die_and_the_curve_is_that_of_one_process(tmp_path: Path) -> None:
    write_images(tmp_path)
    steps = 100
    spec = spec_of(tmp_path, "contrastive", "mlp", steps=steps, strategy="fsdp")
    spec = spec.model_copy(update={"train": spec.train.model_copy(update={"checkpoint_every": 20})})
    wanted = train(worker_of(Group(0, 1, 9), spec_of(tmp_path, "contrastive", "mlp", steps=steps), tmp_path), steps)
    with elastic_run(spec, tmp_path / "run", first=2, state="sharded") as fleet:
        fleet.wait_for_step(2)
        fleet.start(1)
        fleet.wait_for_size(3)
        fleet.wait_for_step(fleet.step() + 3)
        fleet.kill("worker-00000")
        fleet.wait_for_size(2)
        fleet.finish()
    lines, _ = read_lines(RunRecord(fleet.job.folder).metrics_path)
    losses = [line["loss"] for line in lines if "loss" in line]
    np.testing.assert_allclose(losses, wanted["losses"], rtol=1e-6)  # AdamW magnifies what rounding differs
    assert {"start", "join", "restart"} <= {event.cause for event in fleet.events}
