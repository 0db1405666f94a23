"""A segment's index as it is searched: most of the nearest rows, much faster than a scan. `index_choice` makes it.

Inverted lists (Faiss's IVF) of the vectors in half precision, or of 4-bit product-quantised codes (PQ fast-scan), whose
candidates are compared with the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from raydml.search.blas import for_batch
from raydml.search.items import Array
from raydml.search.nearest import Searched, faced_queries, nearest, rescored

_MOST_CANDIDATES = 4096
_SPARE = 4  # compared in float64 beyond k
_ROOM = 4  # times as many are found where some of them may be dead


@dataclass(frozen=True)
class Setting:
    """One point of the operating curve."""

    nprobe: int  # lists probed
    factor: int  # candidates compared for each hit
    recall: float  # of the 10 nearest
    low: float  # its 95 % Wilson bounds
    high: float
    microseconds: float  # for each query, in a batch


class Approximate:
    """An index and the setting that it is searched with."""

    def __init__(self, index: Any, setting: Setting, scan_microseconds: float) -> None:
        self.index = index
        self.setting = setting
        self._scan_microseconds = scan_microseconds

    @classmethod
    def read(cls, path: Path, facts: dict[str, Any]) -> Approximate:
        """From its file, which stays mapped, and what the database says of it."""
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        return cls(index, Setting(**facts["setting"]), facts["scan_microseconds"])

    def serves(self, k: int) -> bool:
        """Whether so many hits can be asked for."""
        return k * self.setting.factor <= _MOST_CANDIDATES

    @property
    def cost_of_exact(self) -> float:
        """The time of a scan beside its own."""
        return self._scan_microseconds / self.setting.microseconds

    def nearest(self, queries: Array, searched: Searched, k: int, usable: Array | None) -> tuple[Array, Array]:
        """As `nearest.nearest`, but for some neighbours that are missed, never for their number or their scores."""
        values, rows = self._compared(queries, searched, k, usable)
        if rows[:, -1].min() < 0:  # too few in the lists probed
            short = np.flatnonzero(rows[:, -1] < 0)
            values[short], rows[short] = nearest(queries[short], searched, k, usable)
        return values, rows

    @cached_property
    def _parameters(self) -> Any:
        return faiss.SearchParametersIVF(nprobe=self.setting.nprobe)  # type: ignore[call-arg]

    def candidates(self, asked: Array, depth: int) -> Array:
        """Rows (nq, depth) in the lists probed, the nearest by their codes first; -1 where there are no more."""
        with for_batch(len(asked)):
            _, rows = _search(self.index)(asked, depth, params=self._parameters)
        return np.asarray(rows)

    def _compared(self, queries: Array, searched: Searched, k: int, usable: Array | None) -> tuple[Array, Array]:
        asked = faced_queries(queries, searched.metric)
        kept = min(k + _SPARE, len(searched.vectors))
        room = 1 if usable is None else _ROOM
        depth = min(max(room * kept, k * self.setting.factor), len(searched.vectors))
        rows = self.candidates(asked, depth)
        if usable is not None:
            rows[~usable[rows]] = -1  # a row of -1 is already none
        if kept < depth:
            best = np.argpartition(_distances(asked, searched, rows), kept - 1, axis=1)[:, :kept]
            rows = np.take_along_axis(rows, best, axis=1)
        return rescored(queries, rows, searched, k)


def _search(index: Any) -> Any:
    """Its search for arrays, also where `faiss.contrib.torch_utils` was imported, whose search takes no parameters."""
    return getattr(index, "search_numpy", index.search)


def _distances(asked: Array, searched: Searched, rows: Array) -> Array:
    """Float32 (nq, m), lower is nearer, of each query's own rows; infinite for -1."""
    result = np.empty(rows.shape, dtype=np.float32)
    library: Any = faiss
    compare = library.fvec_L2sqr_by_idx if searched.metric == "l2" else library.fvec_inner_products_by_idx
    pointers = [faiss.swig_ptr(array) for array in (result, asked, searched.faced)]
    rows = np.ascontiguousarray(rows, dtype=np.int64)
    compare(*pointers, faiss.swig_ptr(rows), asked.shape[1], *rows.shape)
    result = result if searched.metric == "l2" else -result
    result[rows < 0] = np.inf
    return result
