"""Rows and columns in, their tile of scores out, and slopes of the scores back to the rows; one class per distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from pytorch_metric_learning import distances
from torch import Tensor
from torch.nn import functional

Both = tuple[Tensor, Tensor]  # of the rows (r, D), of the columns (c, D)


class Score(Protocol):
    """A symmetric score of two rows: a similarity (`similar`: larger is nearer) or a distance."""

    similar: bool

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Between which scores of prepared rows lie, but for rounding; None: anywhere."""
        ...

    def prepare(self, embeddings: Tensor) -> Tensor:
        """(n, D) -> (n, D): what `tile` takes; differentiable."""
        ...

    def tile(self, rows: Tensor, columns: Tensor) -> Tensor:
        """(r, D), (c, D) -> scores (r, c), a fresh tensor."""
        ...

    def pull(self, rows: Tensor, columns: Tensor, scores: Tensor, slopes: Tensor) -> Both:
        """sum_ij slopes_ij d(score_ij) by the rows, (r, D), and by the columns, (c, D); may overwrite `slopes`."""
        ...


class DotProduct:
    """x . y, of unit vectors (the cosine) or of the embeddings as they are."""

    similar = True

    def __init__(self, normalize: bool) -> None:
        self._normalize = normalize
        self.bounds = (-1.0, 1.0) if normalize else None

    def prepare(self, embeddings: Tensor) -> Tensor:
        """See Score."""
        return functional.normalize(embeddings) if self._normalize else embeddings

    def tile(self, rows: Tensor, columns: Tensor) -> Tensor:
        """See Score."""
        return rows @ columns.T  # (r, c)

    def pull(self, rows: Tensor, columns: Tensor, scores: Tensor, slopes: Tensor) -> Both:
        """See Score."""
        return slopes @ columns, slopes.T @ rows


class Euclidean:
    """|x - y|^power by |x|^2 + |y|^2 - 2 x.y; what rounding alone could have made counts as 0, with slope 0."""

    similar = False

    def __init__(self, normalize: bool, power: float) -> None:
        self._normalize, self._power = normalize, power
        self.bounds = (0.0, 2.0**power) if normalize else None

    def prepare(self, embeddings: Tensor) -> Tensor:
        """See Score."""
        return functional.normalize(embeddings) if self._normalize else embeddings

    def tile(self, rows: Tensor, columns: Tensor) -> Tensor:
        """See Score."""
        squared = self._squared(rows, columns)
        if self._power == 2:
            return squared
        return squared.sqrt_() if self._power == 1 else squared.pow_(self._power / 2)

    def _squared(self, rows: Tensor, columns: Tensor) -> Tensor:
        epsilon = torch.finfo(rows.dtype).eps
        own, other = rows.square().sum(1, keepdim=True), columns.square().sum(1)  # 1 of unit vectors, 0 of a zero row
        squared = (own + other).addmm_(rows, columns.T, alpha=-2)
        if self._normalize:
            return torch.threshold_(squared, 8 * epsilon, 0.0)
        return squared.masked_fill_(squared < 4 * epsilon * (own + other.max()), 0)

    def pull(self, rows: Tensor, columns: Tensor, scores: Tensor, slopes: Tensor) -> Both:
        """See Score."""
        # d|x - y|^p / dx = p |x - y|^(p - 2) (x - y), and |x - y|^(p - 2) = score^(1 - 2 / p)
        if self._power == 1:
            slopes = slopes.div_(scores).nan_to_num_(0, 0, 0)  # equal rows: 0
        elif self._power == 2:
            slopes = slopes.mul_(2)
        else:
            slopes = slopes.mul_(scores.pow(1 - 2 / self._power)).nan_to_num_(0, 0, 0).mul_(self._power)
        of_rows = torch.addmm(rows * slopes.sum(1, keepdim=True), slopes, columns, alpha=-1)
        return of_rows, torch.addmm(columns * slopes.sum(0).unsqueeze(1), slopes.T, rows, alpha=-1)


class Lp:
    """(sum_d |x_d - y_d|^p)^(power / p); there is no matrix product to lean on, the slopes come from torch.cdist's."""

    similar = False

    def __init__(self, p: float, normalize: bool, power: float) -> None:
        self._p, self._normalize, self._power = p, normalize, power
        self.bounds = (0.0, 2.0**power) if normalize else None

    def prepare(self, embeddings: Tensor) -> Tensor:
        """See Score."""
        return functional.normalize(embeddings, p=self._p) if self._normalize else embeddings

    def tile(self, rows: Tensor, columns: Tensor) -> Tensor:
        """See Score."""
        distances = torch.cdist(rows, columns, p=self._p)
        return distances if self._power == 1 else distances.pow_(self._power)

    def pull(self, rows: Tensor, columns: Tensor, scores: Tensor, slopes: Tensor) -> Both:
        """See Score."""
        leaves = rows.detach().requires_grad_(), columns.detach().requires_grad_()
        with torch.enable_grad():
            distances = torch.cdist(*leaves, p=self._p)
            powered = distances if self._power == 1 else distances.pow(self._power)
            of_rows, of_columns = torch.autograd.grad((powered * slopes).sum(), leaves)
        return of_rows, of_columns


def pull_prepare(score: Score, embeddings: Tensor, cotangents: Tensor, slice_size: int) -> Tensor:
    """Cotangents of prepared rows (n, D) -> of the embeddings, one slice at a time.

    Kernels may round differently in tensors of another length: what touches own rows must not see how many they are.
    """
    leaves = [rows.detach().requires_grad_() for rows in torch.split(embeddings, slice_size)]
    with torch.enable_grad():
        prepared = [score.prepare(leaf) for leaf in leaves]
        return torch.cat(pull_back(prepared, leaves, torch.split(cotangents, slice_size)))


def pull_back(outputs: Sequence[Tensor], leaves: Sequence[Tensor], upstream: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Cotangents of outputs -> of leaves of their graphs, in one backward pass.

    As of a sum, since torch loads sympy, 40 MB, for anything but a scalar.
    """
    with torch.enable_grad():
        parts = [(output * cotangent).sum() for output, cotangent in zip(outputs, upstream, strict=True)]
        return torch.autograd.grad(torch.stack(parts).sum(), leaves)


def build_score(distance: Any) -> Score | None:
    """The score of a distance of pytorch-metric-learning; None for one that is not symmetric (snr) and has no tiles."""
    match distance:
        case distances.DotProductSimilarity():  # the cosine too
            return DotProduct(distance.normalize_embeddings)
        case distances.LpDistance() if distance.p == 2:
            return Euclidean(distance.normalize_embeddings, distance.power)
        case distances.LpDistance():
            return Lp(distance.p, distance.normalize_embeddings, distance.power)
        case _:
            return None
