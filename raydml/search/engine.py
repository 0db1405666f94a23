"""A view and queries -> the k nearest points of each: each part gives its nearest rows, and the best of all remain.

A part is scanned exactly, or searched through its index where it has one that was measured to be faster. What a filter
allows is always scanned: how well an index does under a filter depends on both, and nobody has measured it before.
"""

from __future__ import annotations

import numpy as np

from raydml.search.allowed import Allowed
from raydml.search.approximate import Approximate
from raydml.search.items import Array
from raydml.search.nearest import best_of, nearest
from raydml.search.segments import Segment
from raydml.search.view import Part, View

_MOSTLY = 0.5  # a filter that allows a larger share is tested on what a scan of all rows finds


def search(
    view: View,
    queries: Array,
    k: int,
    allowed: Allowed | None = None,
    excluded: Array | None = None,
    exact: bool = False,
) -> tuple[Array, Array]:
    """Closeness (nq, k) float64, highest first, and keys (nq, k); -inf and -1 where there are no more.

    `excluded` (nq, m) are keys of points that are no hits of that query. Equal closeness comes in order of keys.
    """
    depth = k if excluded is None else k + excluded.shape[1]
    parts = [part for part in view.parts.values() if len(part.rows)]
    found = [_part(part, queries, min(depth, len(part.rows)), allowed, exact) for part in parts]
    if len(parts) == 1 and excluded is None and found[0][0].shape[1] == k:
        return found[0]
    closeness = np.concatenate([np.full((len(queries), depth), -np.inf), *(values for values, _ in found)], axis=1)
    keys = np.concatenate([np.full((len(queries), depth), -1), *(keys for _, keys in found)], axis=1)
    if excluded is not None:
        barred = (keys[:, :, None] == excluded[:, None, :]).any(axis=2)
        closeness[barred], keys[barred] = -np.inf, -1
    return best_of(closeness, keys, np.where(keys < 0, np.iinfo(np.int64).max, keys), k)


def approximate(part: Part, k: int) -> Approximate | None:
    """The index that answers for the part where nothing is filtered and `exact` is not asked for, if it has one."""
    index = part.rows.approximate if isinstance(part.rows, Segment) else None
    return index if index is not None and index.serves(k) else None


def _part(part: Part, queries: Array, k: int, allowed: Allowed | None, exact: bool) -> tuple[Array, Array]:
    """Closeness and keys (nq, k) of one part's nearest points."""
    total = len(part.rows)
    if allowed is None:
        usable = part.alive if part.num_dead else None
        index = None if exact else approximate(part, k)
        values, rows = (nearest if index is None else index.nearest)(queries, part.rows.searched, k, usable)
    elif len(chosen := allowed.rows(part)) > _MOSTLY * total:
        usable = np.zeros(total, dtype=bool)
        usable[chosen] = True
        values, rows = nearest(queries, part.rows.searched, k, usable)
    else:
        values, places = nearest(queries, allowed.copies(part), k)
        rows = np.where(places < 0, -1, chosen[places]) if len(chosen) else places
    return values, np.where(rows < 0, -1, part.rows.keys[rows])
