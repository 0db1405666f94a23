"""Classes that a step compares with: those of the batch, and a share of the others that (class, seed, step) decides."""

from __future__ import annotations

import torch
from torch import Tensor

from raydml.parallel import key

# Multipliers of splitmix64 (Steele, Lea and Flood 2014), as signed numbers: products wrap around all the same.
STRIDE, FIRST, SECOND = (number - (1 << 64) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
BITS = 53


def hashed(classes: Tensor, seed: int, step: int) -> Tensor:
    """A number in [0, 2^53) for each class, (n,) int64, that looks random and depends on nothing else."""
    mixed = classes * STRIDE + key("negatives", seed, step)
    for shift, factor in ((30, FIRST), (27, SECOND)):
        mixed = (mixed ^ _shifted(mixed, shift)) * factor
    return _shifted(mixed ^ _shifted(mixed, 31), 64 - BITS)


def _shifted(value: Tensor, bits: int) -> Tensor:
    """To the right without the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def sampled(classes: range, own: Tensor, rate: float, seed: int, step: int) -> Tensor:
    """Places of the classes to compare with, ascending, (m,): `own`, places of classes of the batch, and a share."""
    numbers = torch.arange(classes.start, classes.stop, device=own.device)
    chosen = hashed(numbers, seed, step) < int(rate * (1 << BITS))
    chosen[own] = True
    return chosen.nonzero().squeeze(1)
