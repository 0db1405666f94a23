"""What class vectors take, by formula, against the tensors of real shards and of losses that hold all of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from raydml.cli.tables import plan_table
from raydml.losses import Home, Objective
from raydml.losses.objective import TILED_FROM
from raydml.membership import share
from raydml.parallel import Group
from raydml.parallel.class_vectors import KEPT_SCORES, WHOLE_BELOW, HeadShare, head_share
from raydml.spec import JobSpec
from tests.distributed.harness import small_spec
from tests.unit.test_plan_report import arrays, make

CPU = torch.device("cpu")
ON = {"class_parallel": True}
LOSSES: dict[str, dict[str, Any]] = {
    "arcface": {"kind": "arcface", **ON},
    "sub-centers": {"kind": "sub_center_arc_face", "sub_centers": 2, **ON},
    "softmax": {"kind": "softmax"},
    "proxy anchor": {"kind": "proxy_anchor", **ON},
    "center": {"kind": "center", **ON},
    "with a term": {"kind": "cosface", "center": {"weight": 0.01, **ON}, **ON},
    "arcface on all": {"kind": "arcface"},
    "center on all": {"kind": "center"},
}
OPTIMIZERS: list[dict[str, Any]] = [{"kind": "adamw"}, {"kind": "sgd"}, {"kind": "sgd", "momentum": 0.9}]
__all__ = ["arrays"]


def spec_of(loss: dict[str, Any], optimizer: dict[str, Any] | None = None, **changes: Any) -> JobSpec:
    return small_spec(Path("x.npz"), loss=loss, **{"train.optimizer": optimizer or {"kind": "adamw"}}, **changes)


def share_of(spec: JobSpec, classes: int, workers: int) -> HeadShare:
    found = head_share(spec, classes, workers)
    assert found is not None
    return found


def held(spec: JobSpec, classes: int, rank: int, workers: int) -> list[Tensor]:
    """All tensors of a worker that have a row for each of its classes, and the moments that the optimiser adds."""
    group = Group(rank, workers, spec.batch.virtual_workers)
    options = {"num_classes": classes, "dimension": spec.model.dimension, "seed": 0, "dtype": torch.float32}
    made = Objective(spec.loss, home=Home(group, CPU, spec.train.optimizer, lambda step: 0.1), **options)
    parts = [thing.shard(index) for thing in made.sharded.values() for index in group.owned]
    found = [value for part in parts for name, value in part.items() if value.dim() > 1]
    moments = 2 if spec.train.optimizer.kind == "adamw" else 1 if spec.train.optimizer.momentum else 0
    found += [value.detach() for value in made.parameters() for _ in range(1 + moments)]
    return found + [value for value in made.buffers() if value.dim() > 1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: "-".join(map(str, optimizer.values())))
@pytest.mark.parametrize("name", LOSSES)
def test_rows_and_bytes_are_those_of_the_fullest_worker(name: str, optimizer: dict[str, Any]) -> None:
    spec = spec_of(LOSSES[name], optimizer)
    for classes, workers in ((40, 1), (40, 2), (40, 3), (400, 4)):
        everything = [held(spec, classes, rank, workers) for rank in range(workers)]
        most = max(sum(value.nbytes for value in tensors) for tensors in everything)
        found = share_of(spec, classes, workers)
        assert found.memory == most, (classes, workers)
        fullest = max(len(share(rank, workers, 8)) for rank in range(workers))
        assert found.rows == (classes if "on all" in name else fullest * classes // 8)


def test_a_sampled_head_compares_with_its_share_of_the_classes() -> None:
    whole = share_of(spec_of({"kind": "cosface", **ON}), 80_000, 2)
    tenth = share_of(spec_of({"kind": "cosface", "class_parallel": {"sample_rate": 0.1}}), 80_000, 2)
    assert whole.memory == tenth.memory == 40_000 * 8 * 4 * 3 and whole.sent == tenth.sent
    compared = 4_000 + 8  # of the own 40,000, and the eight classes of the batch
    assert tenth.flops == 6 * 32 * compared * 8 and whole.flops == 6 * 32 * 40_000 * 8
    assert tenth.passing == compared * 8 * 4 * (2 + 2) + 32 * compared * 4
    large = share_of(spec_of({"kind": "cosface", **ON}), 8_000_000, 2)
    assert large.flops == 8 * 32 * 4_000_000 * 8, "scores that were not kept are made again"
    assert large.passing == 4_000_000 * 8 * 4 + KEPT_SCORES * 4


def test_only_a_large_batch_sends_gradients_of_vectors_that_all_hold() -> None:
    assert WHOLE_BELOW == TILED_FROM
    assert share_of(spec_of({"kind": "arcface"}), 400, 4).sent == 0
    large = spec_of({"kind": "arcface"}, batch={"classes": 128, "samples": 8, "virtual_workers": 8})
    assert share_of(large, 400, 4).sent == 2 * 400 * 8 * 4 * 3 // 4
    assert head_share(spec_of({"kind": "triplet"}), 400, 4) is None


def test_a_plan_shows_the_classes_of_each_strategy_and_counts_them(arrays: Path) -> None:
    loss = {"kind": "arcface", "class_parallel": True}
    plain, made = make(arrays), make(arrays, loss=loss)
    assert made.splits["train"].classes == 12
    head = share_of(made.spec, 12, 3)
    assert made.candidates[0].head == head and head.rows == 6  # two of four slices, with 3 of 12 classes each
    assert made.candidates[0].memory == plain.candidates[0].memory + head.memory + head.passing
    assert made.candidates[0].sent == plain.candidates[0].sent + head.sent
    assert made.to_dict()["strategies"][0]["head"]["rows"] == 6
    for one, words in ((made, True), (plain, False)):
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(plan_table(one))
        assert (f"{head.rows} of them in " in console.export_text()) is words
