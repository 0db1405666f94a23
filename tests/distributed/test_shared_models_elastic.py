"""Runs whose model several workers share: they come, go and die by whole copies, and a model's own error ends them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from raydml.parallel import Group
from raydml.spec import JobSpec
from raydml.training.checkpoints import Checkpoints
from raydml.training.worker import Job, Worker
from tests.distributed.elastic_harness import Fleet, elastic_run
from tests.distributed.harness import small_spec, write_images
from tests.distributed.test_sharded_state import losses_of

pytestmark = pytest.mark.timeout(900)

STEPS, EVERY = 60, 10
FORMS: dict[str, dict[str, Any]] = {
    "tensor": {"strategy": "tensor", "mesh": {"tensor": 2}},
    "pipeline": {"strategy": "pipeline", "mesh": {"pipeline": 2}},
}


def spec_of(folder: Path, model: dict[str, Any], steps: int = STEPS, **parallel: Any) -> JobSpec:
    return small_spec(
        folder / "images.npz",
        loss={"kind": "contrastive"},
        model=model,
        train={
            "steps": steps,
            "evaluate_every": 0,
            "checkpoint_every": EVERY,
            "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9},
        },
        parallel={"workers": {"min": 1, "max": 4}, "precision": "float64", **parallel},
    )


MLP = {"backbone": {"kind": "mlp", "hidden": [16, 12], "dropout": 0.1}, "dimension": 8}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float], dict[str, Tensor]]:
    """Losses and the last state of one process with the whole model, to which nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_images(folder)
    worker = Worker(Job(spec_of(folder, MLP), folder, folder, None), Group(0, 1, 8), torch.device("cpu"))
    losses: list[float] = []

    def after(report: Any) -> bool:
        losses.append(report.loss)
        return True

    worker.trainer.run(STEPS, after)
    return folder, losses, worker.trainer.state.tensors()


def sizes_of(fleet: Fleet) -> list[int]:
    return [event.after for event in fleet.events]


@pytest.mark.parametrize("form", FORMS)
def test_copies_of_two_workers_come_go_and_lose_one_and_the_run_is_that_of_one_process(
    undisturbed: tuple[Path, list[float], dict[str, Tensor]], tmp_path: Path, form: str
) -> None:
    folder, losses, tensors = undisturbed
    spec = spec_of(folder, MLP, **FORMS[form])
    with elastic_run(spec, tmp_path / "run", first=2, state="sharded") as fleet:
        fleet.wait_for_step(2)
        fleet.start(2)  # a first one alone would have to wait for the other
        fleet.wait_for_size(4)
        fleet.wait_for_step(EVERY + 1)
        fleet.kill("worker-00001")  # of three a copy of two goes on
        fleet.wait_for_size(2)
        fleet.finish()
    assert set(sizes_of(fleet)) == {2, 4}
    assert {"start", "join", "restart"} <= {event.cause for event in fleet.events}
    found = losses_of(fleet)
    assert [step for step, _ in found] == list(range(1, STEPS + 1)), "each step once"
    np.testing.assert_allclose([loss for _, loss in found], losses, rtol=1e-9, atol=1e-9)
    state = load_file(Checkpoints(fleet.job.folder / "checkpoints", 1).path(STEPS) / "state.safetensors")
    assert state.keys() == tensors.keys()
    for name, value in state.items():
        np.testing.assert_allclose(value, tensors[name].detach(), rtol=1e-9, atol=1e-9, err_msg=name)


class Fails(nn.Module):
    """Passes its input on, and raises in its forward or backward pass from the sixth on."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.calls = where, 0

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.requires_grad and self.where == "backward":
            inputs.register_hook(self._count)
        elif self.training and self.where == "forward":
            self._count(inputs)
        return inputs.clone()

    def _count(self, value: Tensor) -> None:
        self.calls += 1
        if self.calls > 5 * 8:
            raise RuntimeError("a word of the model's own")


@pytest.mark.parametrize(
    ("parallel", "where"),
    [({"strategy": "fsdp"}, "forward"), ({"strategy": "fsdp"}, "backward"), (FORMS["pipeline"], "backward")],
    ids=["fsdp, forward", "fsdp, backward", "pipeline, backward"],
)
def test_an_error_of_the_model_ends_the_run_at_once_in_its_own_words(
    tmp_path: Path, parallel: dict[str, Any], where: str
) -> None:
    write_images(tmp_path)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), Fails(where), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 8))
    spec = spec_of(tmp_path, {"backbone": {"kind": "custom"}, "dimension": 8}, **parallel)
    patient = {"beat_timeout": 300.0, "lease": 200.0}  # on a slow machine nobody counts as lost meanwhile
    with elastic_run(spec, tmp_path / "run", first=2, state="sharded", model=model, **patient) as fleet:
        fleet.wait(lambda: fleet.server.over, "the end", failing=True)
        assert fleet.server.failure is not None and fleet.server.failure["kind"] == "RunError"
        assert ": a word of the model's own\nTraceback" in fleet.server.failure["message"]
        assert [event.cause for event in fleet.changes] == ["start"]
    assert fleet.step() > 0
