"""Global random state, keyed for a while and put back: torch, numpy and Python draw from (seed, step) alone."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch


def key(*parts: int | str) -> int:
    """A 63-bit number that depends on all parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def fresh_weights(seed: int) -> Iterator[None]:
    """Weights made inside come from the seed alone; the generator outside goes on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key("objective", seed))
        yield


@contextmanager
def keyed(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Everything drawn inside is a function of (seed, step); the generators outside go on undisturbed."""
    number = key("loss", seed, step)
    python, numbers = random.getstate(), numpy.random.get_state()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.default_generator.manual_seed(number)
            if devices:
                torch.cuda.manual_seed(number)
            random.seed(number)
            numpy.random.seed(number % 2**32)
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(numbers)
