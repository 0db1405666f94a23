"""Batch norm over a slice and over the global batch: torch's numbers, and statistics that move only at commit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from raydml.errors import SpecError
from raydml.models import build_model
from raydml.parallel import DataParallel, Group, convert_batch_norm
from raydml.parallel.batch_norm import CollectingBatchNorm, SliceBatchNorm, SynchronisedBatchNorm, _Synchronised
from raydml.spec import JobSpec
from tests.distributed.harness import small_spec

ALONE = Group(0, 1, 4)
KINDS = {"per_slice": SliceBatchNorm, "synchronised": SynchronisedBatchNorm}
LAYERS: list[tuple[type[nn.modules.batchnorm._BatchNorm], tuple[int, ...]]] = [
    (nn.BatchNorm1d, (12, 5)),
    (nn.BatchNorm1d, (6, 5, 3)),
    (nn.BatchNorm2d, (4, 5, 3, 2)),
]


def randomised(layer: nn.modules.batchnorm._BatchNorm) -> nn.modules.batchnorm._BatchNorm:
    """The layer with parameters and statistics that differ from channel to channel."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for value in (layer.weight, layer.bias, layer.running_mean):
            value.data.normal_()
        layer.running_var.data.uniform_(0.5, 2)
    return layer


def pair(
    layer: nn.modules.batchnorm._BatchNorm, kind: str, dtype: torch.dtype = torch.float64
) -> tuple[nn.modules.batchnorm._BatchNorm, CollectingBatchNorm]:
    """Torch's own layer, and a converted copy of it."""
    plain = randomised(layer).to(dtype)
    holder = nn.Sequential(copy.deepcopy(plain))
    (ours,) = convert_batch_norm(holder, kind, ALONE)
    assert type(ours) is KINDS[kind]
    return plain, ours


def outcome(layer: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Output and gradients of the input, the weight and the bias for one cotangent."""
    leaf = inputs.clone().requires_grad_()
    output = layer(leaf)
    cotangent = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).reshape(output.shape)
    return [output.detach(), *torch.autograd.grad(output, [leaf, layer.weight, layer.bias], cotangent.sin())]


def batch(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 + 3


def buffers(layer: nn.Module) -> list[Tensor]:
    return [value.clone() for value in layer.buffers()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_output_and_gradients_are_those_of_torch(kind: str, layer: Any, shape: tuple[int, ...]) -> None:
    plain, ours = pair(layer(5), kind)
    for got, wanted in zip(outcome(ours, batch(*shape)), outcome(plain, batch(*shape)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_one_slice_in_float32_has_the_bits_of_torch() -> None:
    plain, ours = pair(nn.BatchNorm2d(5), "per_slice", torch.float32)
    inputs = batch(4, 5, 3, 2, dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(outcome(ours, inputs), outcome(plain, inputs), strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_statistics_stand_still_before_commit_and_then_move_as_torch_moves_them(
    kind: str, momentum: float | None, layer: Any, shape: tuple[int, ...]
) -> None:
    plain, ours = pair(layer(5, momentum=momentum), kind)
    for step in range(3):
        inputs = batch(*shape, seed=step)
        before = buffers(ours)
        ours.start()
        ours(inputs)
        assert all(torch.equal(a, b) for a, b in zip(buffers(ours), before, strict=True))
        assert len(ours.pending) == 1
        ours.commit(*ours.pending[0])
        plain(inputs)
        for got, wanted in zip(buffers(ours), buffers(plain), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    assert int(ours.num_batches_tracked) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_uses_the_running_statistics_and_collects_nothing(kind: str) -> None:
    plain, ours = pair(nn.BatchNorm1d(5), kind)
    assert torch.equal(ours.eval()(batch(6, 5)), plain.eval()(batch(6, 5)))
    assert ours.pending == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_without_running_statistics_has_none_to_move(kind: str) -> None:
    (ours,) = convert_batch_norm(nn.Sequential(nn.BatchNorm1d(5, track_running_stats=False).double()), kind, ALONE)
    ours(batch(6, 5))
    ours.commit(*ours.pending[0])
    assert list(ours.buffers()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_conversion_keeps_modules_parameters_and_names(kind: str) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Sequential(nn.BatchNorm1d(5), nn.ReLU()))
    names, parameters, modules = list(model.state_dict()), list(model.parameters()), list(model.modules())
    found = convert_batch_norm(model, kind, ALONE)
    assert list(model.state_dict()) == names
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert [id(module) for module in found] == [id(model[1]), id(model[2][0])]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_norm_without_weights_is_refused_by_name(kind: str) -> None:
    with pytest.raises(SpecError, match=r"^1: batch norm without affine weights.*affine=True"):
        convert_batch_norm(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5, affine=False)), kind, ALONE)


def test_the_synchronised_gradient_agrees_with_differences() -> None:
    inputs = batch(4, 2, 3).requires_grad_()
    weight = torch.tensor([0.7, -1.3], dtype=torch.float64, requires_grad=True)
    bias = torch.tensor([0.2, 0.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *given: _Synchronised.apply(*given, 1e-5, ALONE)[0], (inputs, weight, bias))


# In DataParallel


def spec_with(model: dict[str, Any]) -> JobSpec:
    small = {"backbone": {"kind": "mlp", "hidden": [6]}, "dimension": 3}
    batch_spec = {"classes": 4, "samples": 4, "virtual_workers": 4}
    return small_spec(Path("images.npz"), batch=batch_spec, model=small | model)


def parallel(model: nn.Module, spec: JobSpec) -> DataParallel:
    return DataParallel(model, spec, ALONE, torch.device("cpu"))


def steps(strategy: DataParallel, count: int = 2) -> None:
    for step in range(count):
        inputs = [batch(4, 5, seed=10 * step + index, dtype=torch.float32) for index in range(4)]
        embeddings = strategy.forward(inputs, step)
        strategy.pullback(torch.ones_like(embeddings))
        strategy.commit()


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_parts_keep_their_statistics_while_others_move(kind: str) -> None:
    wide = {"kind": "mlp", "hidden": [6, 6]}
    spec = spec_with({"backbone": wide, "batch_norm": kind, "frozen": ["backbone.1", "backbone.2"]})
    model = build_model(spec.model, (5,), seed=0)
    frozen, free = model.backbone[2], model.backbone[6]
    before = buffers(frozen), buffers(free)
    steps(parallel(model, spec))
    assert all(torch.equal(a, b) for a, b in zip(buffers(frozen), before[0], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(buffers(free), before[1], strict=True))
    assert int(free.num_batches_tracked) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_no_statistics_move_when_a_step_is_given_up(kind: str) -> None:
    spec = spec_with({"batch_norm": kind})
    model = build_model(spec.model, (5,), seed=0)
    before = buffers(model)
    strategy = parallel(model, spec)
    strategy.pullback(torch.ones_like(strategy.forward([batch(4, 5, dtype=torch.float32)] * 4, 0)))
    assert all(torch.equal(a, b) for a, b in zip(buffers(model), before, strict=True))


def test_the_committed_statistics_are_the_mean_over_the_slices() -> None:
    spec = spec_with({})
    model = build_model(spec.model, (5,), seed=0)
    first = copy.deepcopy(model.backbone[1])
    parts = [batch(4, 5, seed=index, dtype=torch.float32) for index in range(4)]
    strategy = parallel(model, spec)
    strategy.pullback(torch.ones_like(strategy.forward(parts, 0)))
    strategy.commit()
    hidden = [first(part).detach() for part in parts]
    mean = torch.stack([part.mean(0) for part in hidden]).mean(0)
    variance = torch.stack([part.var(0) for part in hidden]).mean(0)
    torch.testing.assert_close(model.backbone[2].running_mean, 0.1 * mean)
    torch.testing.assert_close(model.backbone[2].running_var, 0.9 + 0.1 * variance)


class Twice(nn.Module):
    """One batch norm that is used two times."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(5, 3), nn.BatchNorm1d(3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.norm(self.norm(self.linear(inputs)).exp())


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_norm_used_twice_moves_twice_as_in_torch(kind: str) -> None:
    model = Twice()
    plain = copy.deepcopy(model)
    part = batch(4, 5, dtype=torch.float32)
    strategy = parallel(model, spec_with({"backbone": {"kind": "custom"}, "batch_norm": kind}))
    strategy.pullback(torch.ones_like(strategy.forward([part] * 4, 0)))
    strategy.commit()
    plain(torch.cat([part] * 4) if kind == "synchronised" else part)
    assert int(model.norm.num_batches_tracked) == 2
    torch.testing.assert_close(buffers(model), buffers(plain))


class Counting(nn.Module):
    """A model that counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_moves_a_buffer_in_forward_is_refused_by_name(kind: str) -> None:
    strategy = parallel(Counting(), spec_with({"backbone": {"kind": "custom"}, "batch_norm": kind}))
    with pytest.raises(SpecError, match=r"changes its buffers \['calls'\]: such state cannot be undone"):
        strategy.forward([batch(4, 5, dtype=torch.float32)] * 4, 0)


class FunctionalDropout(nn.Linear):
    """A model whose dropout is no module."""

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.dropout(super().forward(inputs), 0.5, self.training)


def test_synchronised_batch_norm_with_dropout_outside_of_modules_is_refused() -> None:
    custom = {"backbone": {"kind": "custom"}}
    inputs = [batch(4, 5, dtype=torch.float32)] * 4
    with pytest.raises(SpecError, match=r"randomness in nn\.Dropout only"):
        parallel(FunctionalDropout(5, 3), spec_with(custom | {"batch_norm": "synchronised"})).forward(inputs, 0)
    parallel(FunctionalDropout(5, 3), spec_with(custom)).forward(inputs, 0)  # a slice at a time it is keyed
