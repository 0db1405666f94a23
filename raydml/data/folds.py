"""Classes in; folds of them, each with classes to train on and others to be chosen by, out; and data divided by one.

Musgrave, Belongie and Lim, "A Metric Learning Reality Check", ECCV 2020, section 4: test classes stay out of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from raydml.data.dataset import Dataset
from raydml.errors import DataError
from raydml.spec import FoldSpec

FOLDS = 4


@dataclass(frozen=True, eq=False)
class Fold:
    """Classes, int64 and ascending, that a model trains on, and those that choose among models."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]


def class_folds(classes: Sequence[int] | NDArray[np.int64], folds: int = FOLDS) -> tuple[Fold, ...]:
    """Each part of the sorted classes is the validation part of one fold; parts differ by one class at most.

    Parts are contiguous, as in the paper: neighbouring classes are often alike, and stay together. Equal classes
    count once. DataError where a part would have fewer than two classes, or there are fewer than two folds.
    """
    known = np.unique(np.asarray(classes, dtype=np.int64))
    if folds < 2:
        raise DataError(f"{folds} folds: a model needs classes to train on and others to be chosen by, take 2 or more")
    if len(known) < 2 * folds:
        raise DataError(
            f"{len(known)} training classes do not make {folds} folds of 2 or more: take fewer folds, or more classes"
        )
    ends = [len(known) * fold // folds for fold in range(folds + 1)]
    return tuple(
        Fold(np.concatenate([known[:start], known[stop:]]), known[start:stop]) for start, stop in pairwise(ends)
    )


def folded(dataset: Dataset, fold: FoldSpec) -> Dataset:
    """The same items; those of all splits but test train, or validate where their class is of the fold's part.

    Classes are in the order of `class_names`. DataError as of `class_folds`.
    """
    labels, test = dataset.items.labels, dataset.items.splits == "test"
    chosen = class_folds(labels[~test], fold.of)[fold.number]
    validates = np.isin(labels, chosen.validation)
    return dataset.divided(np.where(test, "test", np.where(validates, "validation", "train")))
