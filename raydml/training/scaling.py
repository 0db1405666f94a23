"""Dynamic loss scaling for float16: the factor of the cotangents, and what each step makes of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# The rule and its numbers: torch.amp.GradScaler (after Micikevicius et al., Mixed Precision Training, ICLR 2018).
INITIAL, GROWTH, BACKOFF, INTERVAL = 2.0**16, 2.0, 0.5, 2000
# GradScaler has no bounds. Below 1 (DeepSpeed's floor) scaling would only lose digits; above 2^32 nothing is gained.
LOWEST, HIGHEST = 1.0, 2.0**32
LONGEST_RUN = 32  # skipped steps in a row


class LossScaler(nn.Module):
    """The scale, a power of two, so that scaling and unscaling round nothing; steps since it changed; skips in a row.

    GradScaler itself does not fit: it scales a loss and steps an optimiser; here a step is cut at the embeddings, and
    every worker must decide alike, from the summed gradient.
    """

    scale: Tensor
    grown: Tensor
    skipped: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(INITIAL, dtype=torch.float64))
        self.register_buffer("grown", torch.tensor(0))
        self.register_buffer("skipped", torch.tensor(0))

    def after_step(self) -> None:
        """A step was taken: the scale doubles after many of them in a row."""
        self.skipped.zero_()
        self.grown += 1
        if self.grown == INTERVAL:
            self.scale.mul_(GROWTH).clamp_(max=HIGHEST)
            self.grown.zero_()

    def after_skip(self, *, back_off: bool) -> None:
        """A step was skipped: the scale halves where it was to blame."""
        self.skipped += 1
        if back_off:
            self.scale.mul_(BACKOFF)
            self.grown.zero_()

    def exhausted(self, *, back_off: bool) -> bool:
        """Whether one more such skip would be one too many."""
        lowest = back_off and float(self.scale) * BACKOFF < LOWEST
        return lowest or int(self.skipped) == LONGEST_RUN
