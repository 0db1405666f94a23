"""A view and queries -> the k nearest points of each: the best of what is scanned and of what indexes find.

A part is scanned exactly, or searched through its index where it has one that was measured to be faster. What a filter
allows is always scanned: how well an index does under a filter depends on both, and nobody has measured it before.
"""

from __future__ import annotations

import numpy as np

from raydml.search.allowed import Allowed
from raydml.search.approximate import Approximate
from raydml.search.items import Array
from raydml.search.nearest import Pool, best_of, nearest_of
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
    scanned: list[Pool] = []
    found: list[tuple[Array, Array]] = []
    for part in (part for part in view.parts.values() if len(part.rows)):
        here = min(depth, len(part.rows))
        index = approximate(part, here) if allowed is None and not exact else None
        if index is None:
            scanned.append(_pool(part, allowed))
        else:
            values, rows = index.nearest(queries, part.rows.searched, here, _alive(part))
            assert isinstance(part.rows, Segment)
            found.append((values, part.rows.keys_of(rows)))
    if scanned:
        found.append(nearest_of(queries, scanned, min(depth, sum(map(len, scanned)))))
    if len(found) == 1 and excluded is None and found[0][0].shape[1] == k:
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


def _alive(part: Part) -> Array | None:
    return part.alive if part.num_dead else None


def _pool(part: Part, allowed: Allowed | None) -> Pool:
    """What is to be scanned of a part."""
    keys, total = part.rows.keys, len(part.rows)
    if allowed is None:
        return Pool(part.rows.searched, keys, _alive(part))
    chosen = allowed.rows(part)
    if len(chosen) <= _MOSTLY * total:
        return Pool(allowed.copies(part), keys[chosen])
    usable = np.zeros(total, dtype=bool)
    usable[chosen] = True
    return Pool(part.rows.searched, keys, usable)
