"""Units of a model with their costs -> contiguous stages, the costliest as cheap as possible."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate

import torch
from torch import Tensor

from raydml.errors import SpecError
from raydml.models import Unit


def balanced(costs: Sequence[float], stages: int) -> list[int]:
    """How many units each stage takes, at least one; the largest sum of a stage is the smallest possible."""
    sums = [0.0, *accumulate(costs)]

    @cache
    def best(first: int, left: int) -> tuple[float, tuple[int, ...]]:
        """Of the units from `first` on in `left` stages: the largest sum, and the sizes."""
        if left == 1:
            return sums[-1] - sums[first], (len(costs) - first,)
        options = []
        for size in range(1, len(costs) - first - left + 2):
            rest, sizes = best(first + size, left - 1)
            options.append((max(sums[first + size] - sums[first], rest), (size, *sizes)))
        return min(options)

    return list(best(0, stages)[1])


def sizes_of_stages(units: Sequence[Unit], stages: int, given: Sequence[int] | None, example: Tensor) -> list[int]:
    """Units of each stage: as given, or balanced. Raises SpecError, with the numbers, where they do not fit.

    example: one row of inputs, whose operations are counted unit by unit.
    """
    if len(units) < stages:
        raise SpecError(
            f"{stages} stages (mesh.pipeline x pipeline.stages) are more than the model's {len(units)} units: lower "
            f"one of them"
        )
    if given is None:
        return balanced(costs_of(units, example), stages)
    if len(given) != stages or sum(given) != len(units):
        raise SpecError(
            f"parallel.pipeline.split = {list(given)} has {len(given)} stages of {sum(given)} units, and there are "
            f"{stages} stages and {len(units)} units"
        )
    return list(given)


@torch.no_grad()
def costs_of(units: Sequence[Unit], example: Tensor) -> list[float]:
    """Floating-point operations of each unit for one row, as torch counts them, and one for each parameter."""
    from torch.utils.flop_counter import FlopCounterMode

    found = []
    for unit in units:
        with FlopCounterMode(display=False) as counter:
            example = unit(example)
        found.append(float(counter.get_total_flops() + sum(value.numel() for value in unit.parameters())))
    return found
