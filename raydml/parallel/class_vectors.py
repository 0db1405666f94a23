"""A loss with vectors for each class in; what they take of a worker, and of a step, out.

Formulas and where they come from: docs/scaling.md, class-parallel heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from raydml.catalogue import canonical
from raydml.spec import JobSpec, Sgd

WHOLE_BELOW = 1024  # rows of a batch: every worker then computes a loss whose vectors it holds as a whole
KEPT_SCORES = 16 * 2**20  # numbers: so many of a step's scores stay for its backward pass, others are made again


@dataclass(frozen=True)
class HeadShare:
    """Of the fullest worker: classes whose vectors it holds, bytes of them and their optimiser, and of one step:
    bytes held beside and bytes sent, floating-point operations."""

    rows: int
    memory: int
    passing: int
    sent: int
    flops: int

    def __add__(self, other: HeadShare) -> HeadShare:
        return HeadShare(
            max(self.rows, other.rows),
            self.memory + other.memory,
            self.passing + other.passing,
            self.sent + other.sent,
            self.flops + other.flops,
        )


def head_share(spec: JobSpec, classes: int, workers: int) -> HeadShare | None:
    """Where so many workers hold different slices; None for a loss without vectors for each class."""
    shares = list(_shares(spec, classes, workers))
    if not shares:
        return None
    total = shares[0]
    for share in shares[1:]:
        total += share
    return total


def _shares(spec: JobSpec, classes: int, workers: int) -> Iterator[HeadShare]:
    for loss in (spec.loss, getattr(spec.loss, "center", None)):
        if loss is None or not hasattr(loss, "class_parallel"):
            continue
        centers = not hasattr(loss, "kind") or canonical(loss) == "center"
        yield (_centers if centers else _vectors)(spec, loss, classes, workers)


def _held(spec: JobSpec, loss: Any, classes: int, workers: int) -> int:
    """Classes of the fullest worker: V shards of them, or all on each."""
    slices = spec.batch.virtual_workers
    return min(classes, -(-slices // workers) * -(-classes // slices)) if loss.class_parallel else classes


def _width(spec: JobSpec) -> int:
    return 8 if spec.parallel.precision == "float64" else 4


def _centers(spec: JobSpec, loss: Any, classes: int, workers: int) -> HeadShare:
    """Centres move with the rows of their class: there is no gradient of them, and no optimiser."""
    row = spec.model.dimension * _width(spec)
    rows, size = _held(spec, loss, classes, workers), spec.batch.size
    sent = 2 * size * row * (workers - 1) / workers if loss.class_parallel else 0
    return HeadShare(rows, rows * row, size * row, int(sent), 3 * size * spec.model.dimension)


def _vectors(spec: JobSpec, loss: Any, classes: int, workers: int) -> HeadShare:
    """A softmax over classes, or proxies."""
    rows, width, size = _held(spec, loss, classes, workers), _width(spec), spec.batch.size
    numbers = getattr(loss, "sub_centers", 1) * spec.model.dimension  # of a class
    optimizer = spec.train.optimizer
    slots = int(bool(optimizer.momentum)) if isinstance(optimizer, Sgd) else 2
    rate = getattr(loss.class_parallel, "sample_rate", 1.0)
    compared = rows if rate == 1 else min(rows, int(rate * rows) + spec.batch.classes)
    # Of rows that were drawn, copies with their slots; the gradients; scores.
    passing = compared * numbers * width * (1 if rate == 1 else 2 + slots)
    passing += min(KEPT_SCORES, size * compared) * width
    numbers_sent = 2 * classes * numbers if size >= WHOLE_BELOW else 0
    if loss.class_parallel and canonical(loss) == "proxy_anchor":
        numbers_sent = 2 * size * spec.model.dimension + 2 + spec.batch.virtual_workers
    elif loss.class_parallel:
        numbers_sent = 2 * size * spec.model.dimension + 6 * size + spec.batch.virtual_workers
    products = 6 if size * compared <= KEPT_SCORES else 8
    return HeadShare(
        rows=rows,
        memory=rows * numbers * width * (1 + slots),
        passing=passing,
        sent=int(numbers_sent * width * (workers - 1) / workers),
        flops=products * size * compared * numbers,
    )
