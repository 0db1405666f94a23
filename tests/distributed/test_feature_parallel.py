"""A linear metric whose columns are shared out: equal to one process, one SHA-256, checkpoints of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydml.errors import SpecError
from raydml.models import build_model
from raydml.parallel import Group
from raydml.parallel.feature import CutLinear, FeatureParallel
from raydml.spec import JobSpec
from raydml.training.record import RunRecord
from raydml.training.worker import Job, run_worker
from tests.distributed.harness import run_processes, small_spec, train_case, write_images
from tests.distributed.test_heads import train_some
from tests.distributed.test_same_bits import digests

pytestmark = pytest.mark.timeout(600)

LOSSES: dict[str, dict[str, Any]] = {
    "contrastive": {"kind": "contrastive"},
    "triplet": {"kind": "triplet", "margin": 0.2, "miner": {"kind": "semihard"}},
    "sup_con": {"kind": "sup_con"},
    "arcface": {"kind": "arcface"},
    "center": {"kind": "center"},
}


def spec_of(data: Path, loss: dict[str, Any], strategy: str = "feature", **changes: Any) -> JobSpec:
    """49 features in 8 groups of 7: the last group is empty."""
    train = {"steps": 8, "evaluate_every": 0, "clip_norm": 0.5, **changes.pop("train", {})}
    return small_spec(
        data,
        loss=loss,
        model={"backbone": {"kind": "linear"}, "dimension": 8},
        train=train,
        **{"data.image_size": 7, "parallel.strategy": strategy, **changes},
    )


def trained(group: Group, given: tuple[dict[str, str], str]) -> dict[str, tuple[list[float], np.ndarray | None]]:
    """Losses and the whole map, on the first worker, of each spec."""
    documents, folder = given
    found = {}
    for name, document in documents.items():
        spec = JobSpec.model_validate_json(document)
        result = train_case(group, spec, Path(folder))
        found[name] = result["losses"], result["weights"].get("head.weight")
    return found


@pytest.mark.slow
def test_any_number_of_workers_gives_the_map_and_the_losses_of_one_process(tmp_path: Path) -> None:
    data = write_images(tmp_path)
    in_float64 = {"parallel.precision": "float64"}
    plain = {name: spec_of(data, loss, "ddp", **in_float64).model_dump_json() for name, loss in LOSSES.items()}
    (wanted,) = run_processes(1, trained, (plain, str(tmp_path)), tmp_path)
    cut = {name: spec_of(data, loss, **in_float64).model_dump_json() for name, loss in LOSSES.items()}
    for size in (1, 3):
        found = run_processes(size, trained, (cut, str(tmp_path)), tmp_path)
        for name in LOSSES:
            losses, weight = wanted[name]
            assert losses[0] != losses[-1]
            assert all(part[name][0] == found[0][name][0] for part in found)
            np.testing.assert_allclose(found[0][name][0], losses, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(found[0][name][1], weight, rtol=1e-9, atol=1e-9)
            assert all(part[name][1] is None for part in found[1:]), "the first worker alone has the whole map"


def test_one_sha256_for_one_to_four_workers(tmp_path: Path) -> None:
    data = write_images(tmp_path)
    sgd = {"kind": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4}
    cases = {name: spec_of(data, loss) for name, loss in LOSSES.items()}
    cases["sgd"] = spec_of(data, LOSSES["triplet"], train={"optimizer": sgd})
    assert all(spec.exactness == "bitwise" for spec in cases.values())
    for name, found in digests(cases, (1, 2, 3, 4), tmp_path).items():
        assert len(set(found.values())) == 1, f"{name}: {found}"


def test_checkpoints_are_those_of_one_process_and_ddp_goes_on_with_them(tmp_path: Path) -> None:
    data = write_images(tmp_path)
    spec = spec_of(data, LOSSES["sup_con"], **{"parallel.precision": "float64"})
    plain = spec_of(data, LOSSES["sup_con"], "ddp", **{"parallel.precision": "float64"})
    whole, apart = tmp_path / "whole", tmp_path / "apart"
    for folder in (whole, apart):
        folder.mkdir()
    ((digest, _),) = run_processes(1, train_some, (spec.model_dump_json(), str(whole), None, 8), tmp_path)
    run_processes(3, train_some, (spec.model_dump_json(), str(apart), None, 4), tmp_path)
    for found, parts in run_processes(2, train_some, (spec.model_dump_json(), str(apart), 4, 8), tmp_path):
        assert found == digest and parts == []
    ((_, _),) = run_processes(1, train_some, (plain.model_dump_json(), str(apart), 4, 8), tmp_path)


def whole_run(group: Group, given: tuple[str, str]) -> None:
    """A run from the start to the exported model and its metrics."""
    spec, folder = JobSpec.model_validate_json(given[0]), Path(given[1])
    assert run_worker(Job(spec, folder, folder, None), group, torch.device("cpu")) == "succeeded"


def test_the_exported_model_and_its_metrics_are_the_same_on_any_number_of_workers(tmp_path: Path) -> None:
    spec = spec_of(write_images(tmp_path), LOSSES["triplet"], train={"evaluate_every": 4})
    ends = []
    for size in (1, 3):
        folder = tmp_path / f"by-{size}"
        folder.mkdir()
        run_processes(size, whole_run, (spec.model_dump_json(), str(folder)), tmp_path)
        facts = RunRecord(folder).read()
        ends.append({name: facts[name] for name in ("metrics", "sha256", "state_sha256", "exported_step")})
    assert ends[0] == ends[1]


def test_a_worker_holds_its_columns_alone_and_a_frozen_map_is_refused(tmp_path: Path) -> None:
    spec = spec_of(write_images(tmp_path), LOSSES["triplet"])
    model = build_model(spec.model, (1, 7, 7), 0)
    whole = model.head.weight.detach()
    held = []
    for rank in range(3):
        made = FeatureParallel(model, spec, Group(rank, 3, 8), torch.device("cpu"))
        assert isinstance(made.model, CutLinear)
        held.append(torch.cat([piece.detach() for piece in made.parameters], dim=1))
    assert torch.equal(torch.cat(held, dim=1), whole) and max(piece.shape[1] for piece in held) <= 21
    model.head.weight.requires_grad_(False)
    with pytest.raises(SpecError, match="leaves none"):
        FeatureParallel(model, spec, Group(0, 1, 8), torch.device("cpu"))


@pytest.mark.parametrize("change", [{"model.backbone": {"kind": "mlp"}}, {"parallel.precision": "bf16"}], ids=str)
def test_what_is_no_linear_metric_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"choose model\.backbone\.kind: linear"):
        spec_of(write_images(tmp_path), LOSSES["triplet"], **change)
