"""What the softmax heads of the field differ in: the score of the own class, and that of the others."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from raydml.catalogue import CurricularFace
from raydml.losses.corrected import inside_unit


class Margin(nn.Module):
    """Logits are `scale` x score; the score of the own class is what `target` makes of it. The others stay."""

    normalize = True

    def __init__(self, scale: float, target: Callable[[Tensor], Tensor], *, exact: bool = True) -> None:
        super().__init__()
        self.scale, self._target, self._exact = scale, target, exact

    def target(self, scores: Tensor) -> Tensor:
        """Scores of the own classes (B,), differentiable -> what takes their place; not exact: with slope 1."""
        changed = self._target(scores)
        return changed if self._exact else scores + (changed - scores).detach()

    def begin(self, targets: Tensor) -> Tensor | None:
        """Scores of the own classes of the batch (B,) -> what `commit` is to be given."""
        return None

    def commit(self, moved: Tensor | None) -> None:
        """Move what moves without gradients; only when the step commits."""

    def others(self, logits: Tensor, targets: Tensor, moved: Tensor | None) -> Tensor | None:
        """Change logits of other classes (r, n) in place, given the scores (r,) of the own ones; slopes, None: 1."""
        return None


class Linear(Margin):
    """A linear classifier without bias: logits are dot products of the embeddings and class vectors as they are."""

    normalize = False


class Curricular(Margin):
    """CurricularFace: classes nearer than the own one with its margin count more, and ever more as training goes on.

    cos(t) of such a class becomes cos(t) (e + cos(t)), where e follows the batch's mean cosine of the own classes.
    """

    easiness: Tensor

    def __init__(self, spec: CurricularFace) -> None:
        super().__init__(spec.scale, self._margin)
        self._radians, self._momentum = math.radians(spec.margin), spec.momentum
        self.register_buffer("easiness", torch.zeros(()))

    def _sum(self, cosine: Tensor) -> Tensor:
        """cos(angle + margin)."""
        cosine = inside_unit(cosine)
        sine = (1 - cosine.square()).sqrt()
        return cosine * math.cos(self._radians) - sine * math.sin(self._radians)

    def _margin(self, cosine: Tensor) -> Tensor:
        steep = cosine - math.sin(math.pi - self._radians) * self._radians
        return torch.where(cosine > math.cos(math.pi - self._radians), self._sum(cosine), steep)

    def begin(self, targets: Tensor) -> Tensor:
        """See Margin: the next `easiness`, with which this step counts already."""
        return targets.mean() * self._momentum + self.easiness * (1 - self._momentum)

    def commit(self, moved: Tensor | None) -> None:
        """See Margin."""
        assert moved is not None
        self.easiness.copy_(moved)

    def others(self, logits: Tensor, targets: Tensor, moved: Tensor | None) -> Tensor:
        """See Margin."""
        assert moved is not None
        hard = logits > self._sum(targets).unsqueeze(1) * self.scale
        cosine = logits / self.scale
        logits.copy_(torch.where(hard, logits * (moved + cosine), logits))
        return torch.where(hard, moved + 2 * cosine, 1)
