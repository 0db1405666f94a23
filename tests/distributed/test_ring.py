"""Embeddings that travel around a ring: the same run as gathered, in less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raydml.errors import SpecError
from raydml.losses import Objective, evaluate_objective
from raydml.parallel import Group
from tests.alive import Alive
from tests.distributed.harness import run_processes, small_spec, train_case, write_images
from tests.unit.test_losses import LOSS

BATCH = {"classes": 128, "samples": 9, "virtual_workers": 2}  # slices of 576 rows
ROWS, DIMENSION = 2176, 1024


def trained(group: Group, given: tuple[Any, Path]) -> dict[str, Any]:
    """SHA-256, losses and health of a short run."""
    spec, folder = given
    return train_case(group, spec, folder)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "loss", [{"kind": "multi_similarity", "miner": {"kind": "multi_similarity"}}, {"kind": "arcface"}]
)
def test_a_run_whose_embeddings_travel_ends_with_the_bits_of_one_that_gathers_them(
    tmp_path: Path, loss: dict[str, Any]
) -> None:
    data = write_images(tmp_path, classes=220)  # 132 of them train
    gathered, ring = (
        small_spec(
            data,
            loss=loss,
            batch=BATCH,
            train={"steps": 3, "evaluate_every": 0},
            watch={"every": 2},
            **{"parallel.exchange": exchange},
        )
        for exchange in ("gather", "ring")
    )
    assert gathered.digest() == ring.digest()
    (wanted,) = run_processes(1, trained, (gathered, tmp_path), tmp_path, slices=2)
    assert len(set(wanted["losses"])) == 3, "nothing was trained"
    for spec in (gathered, ring):
        for found in run_processes(2, trained, (spec, tmp_path), tmp_path, slices=2):
            assert (found["sha256"], found["losses"]) == (wanted["sha256"], wanted["losses"])


@pytest.mark.parametrize(
    "loss",
    [
        {"kind": "multi_similarity", "center": {"weight": 0.1}},
        {"kind": "n_pairs"},
        {"kind": "triplet", "regularizer": {"kind": "lp"}},
        {"kind": "textbook_triplet"},
    ],
    ids=lambda loss: loss["kind"],
)
def test_a_ring_is_refused_where_a_loss_needs_all_rows(tmp_path: Path, loss: dict[str, Any]) -> None:
    data = write_images(tmp_path, classes=220)
    spec = small_spec(data, loss=loss, batch=BATCH, **{"parallel.exchange": "ring"})
    with pytest.raises(SpecError, match="choose gather") as refused:
        train_case(Group(0, 1, 2), spec, tmp_path)
    assert "1152 rows in slices of 576" in str(refused.value)


def peak(group: Group, exchange: str) -> float:
    """Bytes that one loss with its gradients takes at most, in those of all embeddings."""
    objective = Objective(
        LOSS.validate_python({"kind": "multi_similarity"}),
        num_classes=ROWS // 4,
        dimension=DIMENSION,
        seed=0,
        dtype=torch.float32,
        batch_size=ROWS,
    )
    own = torch.randn(ROWS // group.size, DIMENSION, generator=torch.Generator().manual_seed(group.rank))
    with Alive() as alive:
        rows = own if exchange == "ring" else group.gather_slices(own)
        evaluate_objective(objective, rows, torch.arange(ROWS) // 4, 0, 0, group)
    return alive.most / (ROWS * DIMENSION * 4)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_memory_of_a_ring_falls_with_the_number_of_workers_and_that_of_gathering_does_not(tmp_path: Path) -> None:
    ring, gathered = (
        {workers: max(run_processes(workers, peak, exchange, tmp_path, slices=4)) for workers in (2, 4)}
        for exchange in ("ring", "gather")
    )
    print(f"times all embeddings: ring {ring}, gathered {gathered}")
    assert ring[4] < 0.75 * ring[2] and ring[4] < 0.7 * gathered[4], (ring, gathered)
    assert gathered[4] > 0.85 * gathered[2], gathered
