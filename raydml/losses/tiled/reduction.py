"""Terms of rows or of pairs in, one number out, as the reducers of pytorch-metric-learning do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pytorch_metric_learning import reducers
from torch import Tensor
from torch.nn import functional

Reduce = Callable[[Tensor, Tensor, Tensor], Tensor]  # sum, count, count above zero -> scalar


def reduce_rows(loss: Any, terms: Tensor, labels: Tensor) -> Tensor:
    """One term a row, (B,), by whatever reducer the loss has."""
    rows = torch.arange(len(terms), device=terms.device)
    given = {"loss": {"losses": terms, "indices": rows, "reduction_type": "element"}}
    reduced: Tensor = loss.reducer(given, terms.unsqueeze(1), labels)
    return reduced


# Reducers of pairs and triplets that need no more than these three numbers.
PAIRS: dict[type, Reduce] = {
    reducers.MeanReducer: lambda total, count, above: total / count.clamp(min=1),
    reducers.SumReducer: lambda total, count, above: total,
    reducers.AvgNonZeroReducer: lambda total, count, above: total / above.clamp(min=1),
}


def pair_reduction(loss: Any) -> Reduce | None:
    """How a loss of pytorch-metric-learning reduces its pairs; None for a reducer that looks at each of them."""
    parts = getattr(loss.reducer, "reducers", {})  # a loss of several parts has as many copies of one reducer
    return PAIRS.get(type(next(iter(parts.values()), loss.reducer)))


def log_one_plus(values: Tensor) -> Tensor:
    """log(1 + exp(v)), exact for large v too."""
    return -functional.logsigmoid(-values)


def add_exponentials(largest: Tensor, total: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """A streamed log-sum-exp: the largest value and the sum of exponentials below it, after more values along axis 1.

    `largest` starts at the smallest finite number and `total` at 0; `values` are overwritten.
    """
    higher = torch.maximum(largest, values.amax(1))
    return higher, total * (largest - higher).exp() + values.sub_(higher.unsqueeze(1)).exp_().sum(1)


def through(value: Tensor, statistic: Tensor, slope: Tensor) -> Tensor:
    """`value` with the gradient `slope` towards an earlier statistic: terms collected tile by tile bring none."""
    return value + ((statistic - statistic.detach()) * slope.detach()).sum()
