"""What training holds in bytes: counted, decided on, and held no longer than said."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from raydml.data import open_dataset
from raydml.errors import SpecError
from raydml.models import build_model
from raydml.parallel import DataParallel, Group
from raydml.parallel.memory import Memory, SavedBytes, choose, machine_bytes, memory_of, worker_share
from raydml.plan import plan
from raydml.spec import JobSpec
from tests.distributed.harness import small_spec, write_images

SLICES, ROWS = 8, 64
CPU = torch.device("cpu")
SIZES = Memory(parameters=10, gradients=10, optimizer=20, activations_per_slice=100, inputs_per_slice=7, tree=True)


def spec_of(memory: str = "auto", gib: float | None = None, **changes: Any) -> JobSpec:
    parallel = {"memory": memory, "workers": {"min": 1, "max": 4, "memory": gib}}
    return small_spec(Path("images.npz"), **({"parallel": parallel} | changes))


class Held:
    """Bytes that graphs hold now, and the most they held: what autograd saves is wrapped, and counted until dropped."""

    def __init__(self) -> None:
        self.now = self.most = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: Wrapped(tensor, self), lambda one: one.tensor):
            yield


class Wrapped:
    def __init__(self, tensor: Tensor, held: Held) -> None:
        self.tensor, self.held = tensor.detach(), held  # with its graph it would hold itself
        held.now += tensor.nbytes
        held.most = max(held.most, held.now)

    def __del__(self) -> None:
        self.held.now -= self.tensor.nbytes


def most_held(memory: str, num_slices: int, numerics: str) -> int:
    """Most bytes that graphs hold at once in the second step of a worker with this many slices."""
    parallel = {"memory": memory, "numerics": numerics}
    batch = {"classes": 2 * num_slices, "samples": ROWS // 2, "virtual_workers": num_slices}
    model = {"backbone": {"kind": "mlp", "hidden": [32], "dropout": 0.1}, "dimension": 8}
    spec = spec_of(batch=batch, model=model, parallel=parallel)
    strategy = DataParallel(build_model(spec.model, (16,), 0), spec, Group(0, 1, num_slices), CPU)
    held = Held()
    for step in range(2):
        inputs = [torch.randn(ROWS, 16, generator=torch.Generator().manual_seed(index)) for index in range(num_slices)]
        with held.watching() if step else torch.enable_grad():
            strategy.pullback(torch.ones_like(strategy.forward(inputs, step)))
    assert held.now == 0, "graphs outlive their step"
    return held.most


@pytest.mark.parametrize("numerics", ["bitwise", "fast"])
def test_recompute_holds_the_graph_of_one_slice_and_keep_those_of_all(numerics: str) -> None:
    one = most_held("keep", 1, numerics)
    assert one > ROWS * 32 * 4
    for num_slices in (2, 8):
        assert most_held("keep", num_slices, numerics) == num_slices * one
        assert most_held("recompute", num_slices, numerics) == one


def test_a_small_share_makes_auto_recompute_and_a_large_one_keep() -> None:
    keep = SIZES.keep(4)  # parameters, optimiser, four sets of gradients, four graphs
    assert keep == 10 + 20 + 4 * 10 + 400
    assert SIZES.recompute(4) == 10 + 20 + 4 * 10 + 4 * 7 + 100
    assert choose(spec_of(), SIZES, 4, 2 * keep) == "keep"
    assert choose(spec_of(), SIZES, 4, 2 * keep - 1) == "recompute"
    assert choose(spec_of("keep"), SIZES, 4, 1) == "keep"
    assert choose(spec_of("recompute"), SIZES, 4, 2**60) == "recompute"


def test_a_single_slice_is_kept_because_recomputing_it_saves_nothing() -> None:
    assert choose(spec_of(), SIZES, 1, 0) == "keep"


def test_auto_decides_anew_when_a_worker_takes_over_more_slices() -> None:
    share = 2 * SIZES.keep(4)
    assert [choose(spec_of(), SIZES, held, share) for held in (2, 4, 5, 8)] == [
        "keep",
        "keep",
        "recompute",
        "recompute",
    ]


def test_a_share_is_the_machine_divided_by_the_workers_that_can_be_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert worker_share(spec_of(), 1, CPU) == machine_bytes()
    assert worker_share(spec_of(), 3, CPU) == machine_bytes() // 3
    assert worker_share(spec_of(), 64, CPU) == machine_bytes() // 4
    assert worker_share(spec_of(gib=1.5), 64, CPU) == 3 * 2**29
    assert 2**28 < machine_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(("limit", "wanted"), [("123456789\n", 123456789), ("max\n", None), (f"{2**62}\n", None)])
def test_the_limit_of_a_control_group_counts_where_it_is_below_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, wanted: int | None
) -> None:
    (tmp_path / "memory.max").write_text(limit)
    monkeypatch.setattr("raydml.parallel.memory.CGROUP_LIMITS", (str(tmp_path / "memory.max"), str(tmp_path / "none")))
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine_bytes.__wrapped__() == (wanted or physical)


def test_counting_sees_each_storage_once_and_changes_no_gradient() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 3))
    inputs = torch.randn(7, 10, generator=torch.Generator().manual_seed(0))
    saved = SavedBytes(model)
    with saved.counting():
        counted = model(inputs)
    assert saved.total == 7 * 10 * 4 + 7 * 20 * 4
    pair = [torch.autograd.grad(output.sum(), list(model.parameters())) for output in (counted, model(inputs))]
    assert all(torch.equal(a, b) for a, b in zip(*pair, strict=True))


def test_a_counted_graph_that_is_dropped_is_freed() -> None:
    first = torch.ones(7, 10, requires_grad=True) * 2
    held = Held()
    alive = weakref.ref(held)
    assert first.grad_fn is not None
    first.grad_fn.metadata["held"] = held  # lives as long as this node of the graph
    with SavedBytes(nn.Identity()).counting():
        last = first.relu().sigmoid()  # both save their outputs
    del first, held
    assert alive() is not None
    del last
    assert alive() is None


def test_a_run_measures_what_the_plan_estimates(tmp_path: Path) -> None:
    spec = small_spec(write_images(tmp_path))
    made = plan(spec, open_dataset(spec.data, tmp_path))
    strategy = DataParallel(build_model(spec.model, (1, 8, 8), 0), spec, Group(0, 1, SLICES), CPU)
    strategy.forward([torch.zeros(4, 1, 8, 8)] * SLICES, 0)
    assert strategy._memory == made.memory


@pytest.mark.parametrize("memory", ["keep", "recompute", "auto"])
def test_a_plan_shows_both_ways_and_the_choice_for_each_number_of_workers(tmp_path: Path, memory: str) -> None:
    data = write_images(tmp_path)
    base = small_spec(data)
    sizes = plan(base, open_dataset(base.data, tmp_path)).memory
    assert sizes is not None
    limit = 2 * sizes.keep(4) / 2**30  # four slices fit, eight do not
    parallel = {"memory": memory, "workers": {"min": 1, "max": 2, "memory": limit}}
    made = plan(small_spec(data, parallel=parallel), open_dataset(base.data, tmp_path))
    choices = made.to_dict()["choices"]
    wanted = {"1": "recompute", "2": "keep"} if memory == "auto" else {"1": memory, "2": memory}
    assert {size: choice["chosen"] for size, choice in choices.items()} == wanted
    assert (choices["1"]["keep"], choices["1"]["recompute"]) == (sizes.keep(8), sizes.recompute(8))
    assert made.worker_bytes(1) == choices["1"]["keep" if wanted["1"] == "keep" else "recompute"]


def test_memory_is_no_part_of_the_digest() -> None:
    digests = {spec_of(memory, gib).digest() for memory in ("keep", "recompute", "auto") for gib in (None, 2.0)}
    assert len(digests) == 1


def test_recompute_is_refused_where_batch_norm_needs_all_slices_at_once() -> None:
    model = {"backbone": {"kind": "mlp"}, "dimension": 8, "batch_norm": "synchronised"}
    with pytest.raises(ValidationError, match=r"synchronised needs them all at once: choose memory: keep, or"):
        spec_of("recompute", model=model)
    assert choose(spec_of("auto", model=model), SIZES, 8, 0) == "keep"


class Growing(nn.Module):
    """A model that remembers, outside of torch, how often it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(5, 3), 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        embeddings: Tensor = self.linear(inputs) * self.calls
        return embeddings


class Spoiling(nn.Linear):
    """A model that changes its inputs in place."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.add_(1))


@pytest.mark.parametrize("model", [Growing(), Spoiling(5, 3)], ids=lambda model: type(model).__name__)
def test_a_model_whose_second_pass_differs_is_refused(model: nn.Module) -> None:
    custom = {"backbone": {"kind": "custom"}, "dimension": 3}
    inputs = [torch.from_numpy(np.ones((4, 5), np.float32)) for _ in range(SLICES)]
    strategy = DataParallel(model, spec_of("recompute", model=custom), Group(0, 1, SLICES), CPU)
    embeddings = strategy.forward(inputs, 0)
    with pytest.raises(SpecError, match=r"gives other embeddings when it runs a second time.*parallel\.memory: keep"):
        strategy.pullback(torch.ones_like(embeddings))


def test_the_state_of_a_model_counts_its_moments_and_partial_sums() -> None:
    model = nn.Linear(5, 3, bias=False)
    sgd = {"steps": 1, "optimizer": {"kind": "sgd", "momentum": 0.9}}
    assert memory_of(spec_of(), model, 1, 2) == Memory(60, 60, 120, 1, 2, True)
    fast = spec_of(train=sgd, parallel={"numerics": "fast", "precision": "float64"})
    assert memory_of(fast, model, 1, 2) == Memory(120, 120, 120, 1, 2, False)
