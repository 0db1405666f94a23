"""Compressed gradients over processes: one SHA-256, bytes as the formulas say, residuals that move with slices."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from raydml.membership import Tree, share
from raydml.parallel import Group
from raydml.spec import JobSpec
from tests.distributed.elastic_harness import elastic_run
from tests.distributed.harness import run_processes, small_spec, train_case, write_images
from tests.distributed.test_heads import train_some
from tests.distributed.test_same_bits import digests
from tests.distributed.test_sharded_state import losses_of

pytestmark = pytest.mark.timeout(600)

KINDS: dict[str, dict[str, Any]] = {
    "none": {"kind": "none"},
    "fp16": {"kind": "fp16"},
    "bf16": {"kind": "bf16"},
    "powersgd": {"kind": "powersgd", "rank": 2},
    "topk": {"kind": "topk", "share": 0.05},
}
SHAPES = [(16, 64), (16,), (16,), (8, 16), (8,)]  # of the small model: weights, batch norm, the last bias
NUMBERS = sum(math.prod(shape) for shape in SHAPES)
STATISTICS = 32  # of batch norm, which arrive as they are


def spec_of(data: Path, kind: str, steps: int = 8) -> JobSpec:
    return small_spec(
        data,
        loss={"kind": "multi_similarity"},
        train={"steps": steps, "evaluate_every": 0, "checkpoint_every": 20},
        **{"parallel.compression": KINDS[kind]},
    )


def test_one_sha256_for_one_to_four_workers(tmp_path: Path) -> None:
    data = write_images(tmp_path)
    seen = digests({kind: spec_of(data, kind) for kind in KINDS}, (1, 2, 3, 4), tmp_path)
    for kind, found in seen.items():
        assert len(set(found.values())) == 1, f"{kind}: {found}"
    assert len({found[1] for found in seen.values()}) == len(KINDS), "each rounds in its own way"


def sent(group: Group, given: tuple[dict[str, str], str]) -> dict[str, int]:
    """Bytes that this worker sent for the gradients of the last of three steps, by kind."""
    documents, folder = given
    found = {}
    for kind, document in documents.items():
        reports: list[Any] = []
        train_case(group, JobSpec.model_validate_json(document), Path(folder), reports=reports)
        found[kind] = int(reports[-1].statistics["gradient_bytes"])
    return found


def tree_bytes(numbers: int, width: int, rank: int, size: int) -> int:
    """Of a sum over the tree: each partial sum to the others but for the own part, and the own part of the result."""
    nodes = len(Tree(8).cover(share(rank, size, 8)))
    part = -(-numbers // size)
    return width * part * (size - 1) * (nodes + 1)


@pytest.mark.parametrize("size", [2, 3])
def test_bytes_are_those_of_the_formulas(tmp_path: Path, size: int) -> None:
    data = write_images(tmp_path)
    documents = {kind: spec_of(data, kind, 3).model_dump_json() for kind in KINDS if kind != "none"}
    for rank, found in enumerate(run_processes(size, sent, (documents, str(tmp_path)), tmp_path)):
        as_they_are = tree_bytes(STATISTICS, 4, rank, size)
        for kind in ("fp16", "bf16"):
            assert found[kind] == tree_bytes(NUMBERS, 2, rank, size) + as_they_are
        thin = [2 * sum(shape) for shape in SHAPES if len(shape) == 2 and 2 * sum(shape) < math.prod(shape)]
        assert thin == [160, 48]
        rest = sum(math.prod(shape) for shape in SHAPES if len(shape) == 1)
        first, second = 2 * 16 + 2 * 8 + rest + STATISTICS, 2 * 64 + 2 * 16
        assert found["powersgd"] == tree_bytes(first, 4, rank, size) + tree_bytes(second, 4, rank, size)
        kept = math.ceil(0.05 * NUMBERS)
        most = max(len(share(other, size, 8)) for other in range(size)) * kept  # no two slices send the same place
        lengths = 8 * max(len(Tree(8).cover(share(other, size, 8))) for other in range(size))
        least = kept * 8 * (size - 1)
        assert least <= found["topk"] - as_they_are <= (most * 8 + lengths) * (size - 1)


@pytest.mark.parametrize("kind", ["powersgd", "topk"])
def test_residuals_are_saved_by_slice_and_other_workers_go_on_with_them(tmp_path: Path, kind: str) -> None:
    spec = spec_of(write_images(tmp_path), kind, 12)
    whole, apart = tmp_path / "whole", tmp_path / "apart"
    for folder in (whole, apart):
        folder.mkdir()
    ((digest, names),) = run_processes(1, train_some, (spec.model_dump_json(), str(whole), None, 12), tmp_path)
    run_processes(3, train_some, (spec.model_dump_json(), str(apart), None, 4), tmp_path)
    results = run_processes(2, train_some, (spec.model_dump_json(), str(apart), 4, 12), tmp_path)
    assert {found for found, _ in results} == {digest}
    assert names == [f"compression.residual-{index:05d}" for index in range(8)]


@pytest.mark.slow
def test_a_run_with_residuals_whose_members_come_and_die_ends_with_the_same_bits(tmp_path: Path) -> None:
    spec = spec_of(write_images(tmp_path), "topk", 60)
    with elastic_run(spec, tmp_path / "undisturbed", first=2, state="sharded") as fleet:
        facts, losses = fleet.finish(), losses_of(fleet)
    with elastic_run(spec, tmp_path / "run", first=1, state="sharded") as fleet:
        fleet.wait_for_step(4)
        fleet.start(2)
        fleet.wait_for_size(3)
        fleet.wait_for_step(max(23, fleet.step() + 2))
        fleet.kill(fleet.server.view.members[0])  # type: ignore[union-attr]
        assert fleet.finish()["state_sha256"] == facts["state_sha256"]
        assert losses_of(fleet) == losses
    assert {"start", "join", "restart"} <= {event.cause for event in fleet.events}


@pytest.mark.slow
def test_every_kind_learns_what_uncompressed_gradients_teach(tmp_path: Path) -> None:
    data = write_images(tmp_path)
    ends = {}
    for kind in KINDS:
        losses = train_case(Group(0, 1, 8), spec_of(data, kind, 80), tmp_path)["losses"]
        ends[kind] = sum(losses[-10:]) / 10
        assert ends[kind] < 0.92 * sum(losses[:10]) / 10, f"{kind}: {ends[kind]}"
    assert all(end < 1.03 * ends["none"] for end in ends.values()), ends
