"""memory: recompute has the bits of memory: keep for any number of workers, and the numbers of a plain loop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydml.membership import share
from raydml.parallel import Group
from raydml.parallel.memory import choose, worker_share
from raydml.spec import JobSpec
from raydml.training.worker import Job, Worker
from tests.distributed.harness import run_processes, small_spec, write_images
from tests.distributed.test_equal_to_plain_pytorch import exact_spec, plain_loop, train_given
from tests.distributed.test_same_bits import AUGMENT, CNN, digests

MLP = {"backbone": {"kind": "mlp", "hidden": [16, 16], "dropout": 0.3}, "dimension": 8}
CLIPPED = {"steps": 4, "evaluate_every": 0, "clip_norm": 0.5}


@pytest.fixture(autouse=True)
def numerics_of_this_process() -> Iterator[None]:
    """A worker sets torch's numerics for its process; here other tests follow."""
    yield
    torch.use_deterministic_algorithms(False)


def with_memory(spec: JobSpec, memory: str, gib: float | None = None) -> JobSpec:
    workers = spec.parallel.workers.model_copy(update={"memory": gib})
    parallel = spec.parallel.model_copy(update={"memory": memory, "workers": workers})
    return spec.model_copy(update={"parallel": parallel})


def test_recompute_has_the_sha256_of_keep_for_one_to_three_workers(tmp_path: Path) -> None:
    data = write_images(tmp_path)
    common = {"train": CLIPPED, "data.augment": AUGMENT}
    low = {"loss": {"kind": "arcface", "center": {"weight": 0.01}}, "parallel.precision": "bf16"}
    specs = {
        "convolutions": small_spec(data, model=CNN, **common),
        "fully connected": small_spec(data, model=MLP, **common),
        "bf16, own weights and centres": small_spec(data, model=MLP, **common, **low),
    }
    both = {(name, way): with_memory(spec, way) for name, spec in specs.items() for way in ("keep", "recompute")}
    found = digests({" ".join(case): spec for case, spec in both.items()}, (1, 2, 3), tmp_path)
    for name in specs:
        shas = [*found[f"{name} keep"].values(), *found[f"{name} recompute"].values()]
        assert len(shas) == 6 and len(set(shas)) == 1, f"{name}: {shas}"


def train_all(group: Group, given: tuple[list[str], str]) -> list[dict[str, Any]]:
    documents, folder = given
    return [train_given(group, (document, folder)) for document in documents]


def test_recompute_gives_the_parameters_of_a_plain_loop(tmp_path: Path) -> None:
    write_images(tmp_path)
    specs = [
        with_memory(exact_spec(tmp_path, "per_slice", numerics, steps=4), "recompute")
        for numerics in ("bitwise", "fast")
    ]
    model, curve = plain_loop(specs[0], tmp_path)
    given = ([spec.model_dump_json() for spec in specs], str(tmp_path))
    for result in [result for worker in run_processes(2, train_all, given, tmp_path) for result in worker]:
        np.testing.assert_allclose(result["losses"], curve, rtol=1e-9)
        for name, value in model.state_dict().items():
            if "num_batches" not in name:
                got = result["tensors"][f"model.{name}"]
                np.testing.assert_allclose(got, value.numpy(), rtol=1e-9, atol=1e-9, err_msg=name)


def decide_and_train(group: Group, given: tuple[str, str]) -> tuple[str, str]:
    """What this worker's `auto` decided, and the state's SHA-256."""
    document, folder = given
    spec = JobSpec.model_validate(json.loads(document))
    worker = Worker(Job(spec, Path(folder), Path(folder), None), group, torch.device("cpu"))
    worker.trainer.run(spec.train.steps, lambda report: True)
    strategy: Any = worker.trainer.strategy
    room = worker_share(spec, group.size, torch.device("cpu"))
    return choose(spec, strategy._memory, len(group.owned), room), worker.trainer.state.digest()


def test_workers_that_decide_differently_agree_on_every_bit(tmp_path: Path) -> None:
    spec = small_spec(write_images(tmp_path), model=MLP, train=CLIPPED)
    alone = Worker(Job(spec, tmp_path, tmp_path, None), Group(0, 1, 8), torch.device("cpu"))
    alone.trainer.run(spec.train.steps, lambda report: True)
    measured = alone.trainer.strategy._memory  # type: ignore[attr-defined]
    few, many = (len(share(rank, 3, 8)) for rank in (0, 2))
    limit = measured.keep(few) + measured.keep(many)  # half of it lies between the two
    given = (with_memory(spec, "auto", limit / 2**30).model_dump_json(), str(tmp_path))
    choices, shas = zip(*run_processes(3, decide_and_train, given, tmp_path), strict=True)
    assert choices == ("keep", "recompute", "recompute")
    assert set(shas) == {alone.trainer.state.digest()}
