"""The protocol of "A Metric Learning Reality Check": a model of each fold of the training classes in, one number out.

Musgrave, Belongie and Lim, ECCV 2020, section 4: test classes are never looked at. The training classes are cut into
four parts; a model is trained on three and chosen by the fourth, four times. The four models are then measured on
the test classes in two ways: their embeddings concatenated, and each one's by itself, of which the mean is taken.
The folds are `raydml.data.folds`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from raydml.errors import DataError
from raydml.evaluation.scores import Array


def concatenated(parts: Sequence[Array]) -> Array:
    """Embeddings (n, d) of the same items by each fold's model -> float32 (n, folds x d), rows of length 1.

    Each is scaled to length 1 first, so that every model counts alike; a row of zeros stays one. Cosine similarity of
    the whole is then the mean of the models' cosine similarities. DataError where they are not of the same items.
    """
    if len({len(part) for part in parts}) != 1 or any(part.ndim != 2 for part in parts):
        raise DataError(f"embeddings of shapes {[part.shape for part in parts]} are not of the same items")
    return _unit(np.concatenate([_unit(part) for part in parts], axis=1)).astype(np.float32)


def separated(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over the folds' models. DataError where they do not have the same metrics."""
    if not metrics or any(found.keys() != metrics[0].keys() for found in metrics):
        raise DataError(f"the folds have other metrics each: {[sorted(found) for found in metrics]}")
    return {name: float(np.mean([found[name] for found in metrics])) for name in metrics[0]}


def _unit(vectors: Array) -> Array:
    """float64 rows of length 1, or 0."""
    rows = vectors.astype(np.float64)
    lengths = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    return np.asarray(np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0))
