"""Raw inputs -> the embeddings that a trained model has to beat."""

from __future__ import annotations

from typing import Any

import numpy as np

from raydml.evaluation.checks import squared_norms

_ROWS_AT_ONCE = 1024


def baseline(raw: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Mean-centred, L2-normalised raw inputs: float32 (n, flattened), of `raw` (n, flattened).

    Computed in float64. A row that is the mean itself, to float32 rounding, has no direction and becomes zeros.
    DataError for rows that are not finite.
    """
    norms = np.sqrt(squared_norms("raw", raw))
    result = np.empty(raw.shape, dtype=np.float32)
    mean = raw.mean(axis=0, dtype=np.float64) if len(raw) else 0.0
    for start in range(0, len(raw), _ROWS_AT_ONCE):
        here = slice(start, start + _ROWS_AT_ONCE)
        centred = raw[here].astype(np.float64) - mean
        lengths = np.sqrt(np.square(centred).sum(axis=1))
        lengths[lengths <= np.finfo(np.float32).eps * norms[here]] = np.inf
        result[here] = centred / lengths[:, None]
    return result
