"""The distributed step against a plain single-process loop over the whole batch, in float64 to 1e-9."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses, miners
from torch import Tensor, nn

from raydml.data import SamplingPlan, open_dataset
from raydml.models import build_model
from raydml.parallel import Group
from raydml.spec import JobSpec
from tests.distributed.harness import run_processes, small_spec, train_case, write_images

STEPS = 5
GOLDEN = Path(__file__).with_name("golden_losses.json")


def plain_loop(spec: JobSpec, folder: Path) -> tuple[nn.Module, list[float]]:
    """What a person would write without raydml; one forward per slice, or of the whole batch."""
    dataset = open_dataset(spec.data, folder)
    plan = SamplingPlan(dataset.training_labels, spec.batch, spec.seed)
    model = build_model(spec.model, dataset.input_shape, spec.seed).double()
    loss_function = losses.TripletMarginLoss(margin=0.2)
    miner = miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01)
    curve = []
    for step in range(spec.train.steps):
        positions = plan.batch(step)
        inputs = dataset.tensors(dataset.indices("train")[positions]).double()
        labels = torch.from_numpy(dataset.training_labels[positions])
        pieces = inputs.chunk(8) if spec.model.batch_norm == "per_slice" else [inputs]
        optimizer.zero_grad()
        with running_statistics_of_slices(model, enabled=len(pieces) > 1):
            embeddings = torch.cat([model(piece) for piece in pieces])
            loss = loss_function(embeddings, labels, miner(embeddings, labels))
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        curve.append(float(loss.detach()))
    return model, curve


class running_statistics_of_slices:
    """Moves running statistics once a step, by the mean of the slices' own: the definition, written plainly."""

    def __init__(self, model: nn.Module, *, enabled: bool) -> None:
        self.norms = [
            module for module in model.modules() if enabled and isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
        ]
        self.seen: dict[nn.Module, list[Tensor]] = {norm: [] for norm in self.norms}

    def __enter__(self) -> None:
        self.handles = [norm.register_forward_pre_hook(self.collect) for norm in self.norms]
        self.before = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in self.norms]

    def collect(self, norm: nn.Module, inputs: tuple[Tensor]) -> None:
        self.seen[norm].append(inputs[0].detach().transpose(0, 1).flatten(1))

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()
        for norm, (mean, variance) in zip(self.norms, self.before, strict=True):
            means = torch.stack([rows.mean(1) for rows in self.seen[norm]]).mean(0)
            variances = torch.stack([rows.var(1) for rows in self.seen[norm]]).mean(0)
            norm.running_mean.copy_(0.9 * mean + 0.1 * means)
            norm.running_var.copy_(0.9 * variance + 0.1 * variances)


def exact_spec(folder: Path, batch_norm: str, numerics: str, steps: int = STEPS) -> JobSpec:
    return small_spec(
        folder / "images.npz",
        model={"backbone": {"kind": "small_cnn", "width": 16}, "dimension": 8, "batch_norm": batch_norm},
        train={"steps": steps, "evaluate_every": 0, "clip_norm": 0.5},
        **{"parallel.precision": "float64", "parallel.numerics": numerics},
    )


def train_given(group: Group, given: tuple[str, str]) -> dict[str, Any]:
    document, folder = given
    return train_case(group, JobSpec.model_validate(json.loads(document)), Path(folder))


@pytest.mark.parametrize("numerics", ["bitwise", "fast"])
@pytest.mark.parametrize("batch_norm", ["per_slice", "synchronised", "group"])
def test_parameters_after_five_steps_are_those_of_a_plain_loop(tmp_path: Path, batch_norm: str, numerics: str) -> None:
    write_images(tmp_path)
    spec = exact_spec(tmp_path, batch_norm, numerics)
    model, curve = plain_loop(spec, tmp_path)
    for size in (1, 2, 3):
        results = run_processes(size, train_given, (spec.model_dump_json(), str(tmp_path)), tmp_path)
        for result in results:
            np.testing.assert_allclose(result["losses"], curve, rtol=1e-9)
            for name, value in model.state_dict().items():
                if "num_batches" not in name:
                    got = result["tensors"][f"model.{name}"]
                    np.testing.assert_allclose(got, value.numpy(), rtol=1e-9, atol=1e-9, err_msg=name)


def test_the_loss_curve_is_the_golden_one(tmp_path: Path) -> None:
    write_images(tmp_path)
    spec = exact_spec(tmp_path, "per_slice", "bitwise", steps=20)
    [result] = run_processes(1, train_given, (spec.model_dump_json(), str(tmp_path)), tmp_path)
    golden = json.loads(GOLDEN.read_text())
    assert len(set(golden)) == 20
    np.testing.assert_allclose(result["losses"], golden, rtol=1e-9)
