"""What a collection gives back: items as stored, and hits of a search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
Id = str | int
Payload = dict[str, Any]
Filter = dict[str, Any]
Metric = Literal["cosine", "l2", "inner_product"]


class Hit(NamedTuple):
    """One result. For cosine and inner_product a higher score is nearer; for l2 it is the distance, lower is nearer."""

    id: Id
    score: float
    payload: Payload
    vector: Array | None = None  # where it was asked for


@dataclass(frozen=True, eq=False)
class Item:
    """One stored item; the vector is float32 (dimension,), as it was given."""

    id: Id
    vector: Array
    payload: Payload
    sequence: int = 0  # of its last change
