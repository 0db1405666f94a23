"""Faiss multiplies small batches of queries without BLAS, ten times slower; within `for_batch` it uses BLAS.

`faiss.cvar.distance_compute_blas_threshold` (compared with queries x dimension) belongs to the whole process, so it is
lowered only while batches are being searched and then given its old value back.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import faiss

_SMALL_BATCH = 4  # below this, BLAS packs more than it multiplies and is about twice as slow
_lock = threading.Lock()
_active = 0
_threshold_before = 0


@contextmanager
def for_batch(num_queries: int) -> Iterator[None]:
    """Let Faiss use BLAS in the block if the batch is large enough to gain by it. Any number of threads may be inside.

    A single query in another thread may meet the lowered threshold: slower for that moment, and with the same hits,
    since `nearest` computes the scores that it gives out itself.
    """
    global _active, _threshold_before
    if num_queries < _SMALL_BATCH:
        yield
        return
    with _lock:
        if _active == 0:
            _threshold_before = faiss.cvar.distance_compute_blas_threshold
            faiss.cvar.distance_compute_blas_threshold = 1
        _active += 1
    try:
        yield
    finally:
        with _lock:
            _active -= 1
            if _active == 0:
                faiss.cvar.distance_compute_blas_threshold = _threshold_before
