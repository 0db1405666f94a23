"""Arrays from the caller -> the same arrays, or a DataError that shows which rows are wrong and why."""

from __future__ import annotations

from typing import Any

import numpy as np

from raydml.errors import DataError

_ROWS_AT_ONCE = 4096
_SHOWN = 10


def squared_norms(name: str, vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """|row|^2 of `vectors` (n, d) as float64 (n,); DataError unless it is a matrix of finite numbers."""
    if vectors.ndim != 2 or vectors.shape[1] == 0 or vectors.dtype.kind not in "fiu":
        raise DataError(
            f"{name} must be a matrix of numbers (rows, dimension), not {vectors.dtype} of shape {vectors.shape}",
            shape=vectors.shape,
        )
    norms = np.empty(len(vectors))
    with np.errstate(over="ignore"):
        for start in range(0, len(vectors), _ROWS_AT_ONCE):
            rows = vectors[start : start + _ROWS_AT_ONCE].astype(np.float64)
            norms[start : start + len(rows)] = np.square(rows).sum(axis=1)
    wrong = np.flatnonzero(~np.isfinite(norms))
    if len(wrong):
        raise DataError(
            f"{name}: {len(wrong)} of {len(vectors)} rows hold NaN, an infinity or numbers too large to square: rows "
            f"{_some(wrong)}; look for a diverged model or a damaged input",
            rows=wrong[:_SHOWN].tolist(),
        )
    return norms


def check_labels(name: str, labels: np.ndarray[Any, Any], num_rows: int) -> np.ndarray[Any, Any]:
    """Integer labels (num_rows,) as int64; DataError for another shape or type (floats merge large labels)."""
    if labels.shape != (num_rows,) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{name} must be {num_rows} integers, one for each row, not {labels.dtype} of shape {labels.shape}",
            shape=labels.shape,
        )
    return labels.astype(np.int64)  # uint64 wraps around one to one, so equal labels stay equal and others different


def check_own(
    own: np.ndarray[Any, Any] | None, query_labels: np.ndarray[Any, Any], gallery_labels: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Gallery row of each query, or -1, as int64 (nq,); DataError if one is out of range or has another label."""
    if own is None:
        return np.full(len(query_labels), -1, dtype=np.int64)
    own = check_labels("own", np.asarray(own), len(query_labels))
    wrong = np.flatnonzero((own < -1) | (own >= len(gallery_labels)))
    if len(wrong):
        raise DataError(
            f"own must be -1 or a row of the gallery (0 to {len(gallery_labels) - 1}), and is {own[wrong[0]]} for "
            f"query {wrong[0]}",
            rows=wrong[:_SHOWN].tolist(),
        )
    wrong = np.flatnonzero((own >= 0) & (gallery_labels[own] != query_labels))
    if len(wrong):
        raise DataError(
            f"own says that a query is a gallery row with another label: queries {_some(wrong)}; own must name the row "
            f"that is the same item",
            rows=wrong[:_SHOWN].tolist(),
        )
    return own


def _some(rows: np.ndarray[Any, Any]) -> str:
    return ", ".join(map(str, rows[:_SHOWN])) + (", …" if len(rows) > _SHOWN else "")
