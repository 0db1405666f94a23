"""Random numbers as a pure function of (seed, step, slice), and dropout that knows its slices."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

STATE_BYTES = 5056  # of torch's generator of the CPU


def key(*parts: int | str) -> int:
    """A 63-bit seed from any numbers and words."""
    text = "/".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


@contextmanager
def keyed_randomness(device: torch.device, *parts: int | str) -> Iterator[None]:
    """Within, torch's global generators of the CPU and of this device start at the key; afterwards all is as before."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        seed = key(*parts)
        # torch.manual_seed would also format a stack trace for each kind of accelerator that is not there.
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        yield


class SlicedDropout(nn.Dropout):
    """Dropout over several slices at once, each with its own generator, so that no mask depends on the worker."""

    generators: list[torch.Generator]

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; rows of the slices follow one another."""
        if not self.training or not self.p:
            return input
        parts = input.chunk(len(self.generators))
        masks = [
            torch.empty_like(part).bernoulli_(1 - self.p, generator=generator)
            for part, generator in zip(parts, self.generators, strict=True)
        ]
        return input * torch.cat(masks) / (1 - self.p)


def convert_dropout(model: nn.Module, generators: list[torch.Generator]) -> None:
    """Turn every nn.Dropout of the model, in place, into one that draws from these generators, one a slice."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = SlicedDropout
            assert isinstance(module, SlicedDropout)
            module.generators = generators
