"""The optimiser of class rows against torch.optim, dense and with rows that most steps do not touch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from raydml.losses.heads import optimizer as rows_optimizer
from raydml.losses.heads.optimizer import RowAdam, build_optimizer
from raydml.spec import OptimizerSpec, ScheduleSpec
from raydml.training.state import build_optimizer as dense_optimizer
from raydml.training.state import learning_rate_factor

STEPS, ROWS, NUMBERS = 50, 40, 6
SPEC: TypeAdapter[Any] = TypeAdapter(OptimizerSpec)
KINDS: list[dict[str, Any]] = [
    {"kind": "sgd", "lr": 0.2, "momentum": 0.9, "weight_decay": 0.05},
    {"kind": "sgd", "lr": 0.2, "momentum": 0.9, "weight_decay": 0.05, "nesterov": True},
    {"kind": "sgd", "lr": 0.2, "momentum": 0.8},
    {"kind": "sgd", "lr": 0.2, "momentum": 0, "weight_decay": 0.05},
    {"kind": "adamw", "lr": 0.05, "weight_decay": 0.1},
    {"kind": "adamw", "lr": 0.05, "weight_decay": 0.1, "betas": (0.3, 0.9)},  # a first moment that dies within the test
    {"kind": "adam", "lr": 0.05, "betas": (0.3, 0.9)},
    {"kind": "adam", "lr": 0.05, "weight_decay": 0.1, "betas": (0.3, 0.9)},
    {"kind": "adam", "lr": 0.05, "betas": (0.0, 0.9)},
]
SCHEDULE = ScheduleSpec(kind="cosine", warmup_steps=7, final_factor=0.1)


def rate(lr: float, step: int) -> float:
    return lr * learning_rate_factor(SCHEDULE, step, STEPS)


def gradients() -> list[tuple[Tensor, Tensor]]:
    """Of each step, the rows that it touches and their gradients; row 0 only at first, the last row only at the end."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for step in range(STEPS):
        touched = torch.rand(ROWS, generator=generator) < 0.1
        touched[0], touched[-1] = step == 0, step == STEPS - 1
        places = touched.nonzero().squeeze(1)
        found.append((places, torch.randn(len(places), NUMBERS, generator=generator, dtype=torch.float64)))
    return found


def dense(spec: Any, start: Tensor) -> Tensor:
    """torch.optim over all rows at every step."""
    parameter = nn.Parameter(start.clone())
    optimizer = dense_optimizer(spec, [("objective.head", parameter)])
    assert optimizer is not None
    for step, (places, gradient) in enumerate(gradients()):
        parameter.grad = torch.zeros_like(start)
        parameter.grad[places] = gradient
        optimizer.param_groups[0]["lr"] = rate(spec.lr, step)
        optimizer.step()
    return parameter.detach()


def lazy(spec: Any, start: Tensor) -> Tensor:
    """Only touched rows move; in the end all of them are brought up to date."""
    optimizer = build_optimizer(spec)
    vectors, counts = start.clone(), torch.zeros(ROWS, dtype=torch.long)
    slots = {name: torch.zeros_like(start) for name in optimizer.names}

    def learned(count: int) -> float:
        return rate(spec.lr, count)

    for step, (places, gradient) in enumerate(gradients()):
        row, own = vectors[places], {name: value[places] for name, value in slots.items()}
        optimizer.catch_up(row, own, counts[places], step, learned)
        optimizer.step(row, own, gradient, step, learned(step))
        vectors[places], counts[places] = row, step + 1
        for name, value in own.items():
            slots[name][places] = value
    optimizer.catch_up(vectors, slots, counts, STEPS, learned)
    return vectors


@pytest.mark.parametrize("document", KINDS, ids=str)
def test_rows_that_catch_up_are_where_the_dense_optimizer_has_them(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_optimizer, "ROWS", 7)
    spec = SPEC.validate_python(document)
    start = torch.randn(ROWS, NUMBERS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted, found = dense(spec, start), lazy(spec, start)
    assert (wanted - start).norm(dim=1).min() > 1e-3, "a row that never moved proves nothing"
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_what_is_left_out_of_adamw_is_less_than_a_billionth(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPEC.validate_python({"kind": "adamw", "betas": (0.3, 0.9)})
    assert 0 < RowAdam(spec)._lives < STEPS, "nothing would be left out"
    assert RowAdam(SPEC.validate_python({"kind": "adamw"}))._lives == 264


def test_one_update_of_all_rows_is_that_of_torch() -> None:
    for document in KINDS:
        spec = SPEC.validate_python(document)
        start = torch.randn(ROWS, NUMBERS, generator=torch.Generator().manual_seed(1))
        parameter = nn.Parameter(start.clone())
        theirs, ours = dense_optimizer(spec, [("objective.head", parameter)]), build_optimizer(spec)
        vectors, slots = start.clone(), {name: torch.zeros_like(start) for name in ours.names}
        for step in range(3):
            gradient = torch.randn(ROWS, NUMBERS, generator=torch.Generator().manual_seed(step))
            parameter.grad = gradient.clone()
            assert theirs is not None
            theirs.step()
            ours.step(vectors, slots, gradient, step, spec.lr)
        torch.testing.assert_close(vectors, parameter.detach(), rtol=1e-6, atol=1e-7)
