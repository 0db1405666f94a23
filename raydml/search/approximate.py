"""A segment's vectors -> an index that finds most of the nearest rows much faster than a scan, where there is one.

Inverted lists of 4-bit product-quantised codes (Faiss's IVF with PQ fast-scan) give candidates, which are compared with
the vectors themselves. How many lists are probed and how many candidates are compared is measured on vectors of the
segment, not given: the fastest setting whose recall, beside an exact search, is surely above the target. Where no
setting is, or none is faster than the scan, there is no index. Graphs (HNSW) are not used: Faiss's crash when vectors
are added during a search, lose exact duplicates, and were slower at the same recall (benchmarks/results/search.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from raydml.search.items import Array
from raydml.search.nearest import Searched, faced_queries, nearest, rescored
from raydml.search.recall import num_common, wilson

MIN_ROWS = 20_000  # fewer are scanned: in 2 ms and less, for 128 dimensions
_QUERIES = 400
_K = 10
_FACTORS = (4, 10, 25, 60)  # candidates compared for each hit
_MOST_CANDIDATES = 4096
_SPARE = 4  # compared in float64 beyond k
_FEWEST = 2  # log2 of the lists probed at least: queries are seldom as near to their lists as stored vectors
_PER_LIST = 64  # training vectors for each list
_ROUNDS = 12  # of k-means


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

    def __init__(self, index: Any, setting: Setting) -> None:
        self.index = index
        self.setting = setting

    @classmethod
    def read(cls, path: Path, facts: dict[str, Any]) -> Approximate:
        """From its file, and what the database says of it."""
        return cls(faiss.read_index(str(path)), Setting(**facts["setting"]))

    def serves(self, k: int) -> bool:
        """Whether so many hits can be asked for."""
        return k * self.setting.factor <= _MOST_CANDIDATES

    def nearest(self, queries: Array, searched: Searched, k: int, usable: Array | None) -> tuple[Array, Array]:
        """As `nearest.nearest`, but for some neighbours that are missed, never for their number or their scores."""
        values, rows = self._compared(queries, searched, k, usable)
        short = np.flatnonzero(rows[:, -1] < 0)  # too few in the lists probed
        if len(short):
            values[short], rows[short] = nearest(queries[short], searched, k, usable)
        return values, rows

    def _compared(self, queries: Array, searched: Searched, k: int, usable: Array | None) -> tuple[Array, Array]:
        asked = faced_queries(queries, searched.metric)
        depth = min(k * self.setting.factor, len(searched.vectors))
        parameters = faiss.SearchParametersIVF(nprobe=self.setting.nprobe)  # type: ignore[call-arg]
        _, rows = self.index.search(asked, depth, params=parameters)
        if usable is not None:
            rows[~usable[rows]] = -1  # a row of -1 is already none
        distances = _distances(asked, searched, rows)
        kept = min(k + _SPARE, depth)
        if kept < depth:
            best = np.argpartition(distances, kept - 1, axis=1)[:, :kept]
            rows = rows[np.arange(len(rows))[:, None], best]
        return rescored(queries, rows, searched, k)


def build(folder: Path, name: str, searched: Searched, target: float) -> dict[str, Any]:
    """Write an index to the file `name` in `folder`, if it is worth one; gives what the database keeps of it.

    {} for a segment that is too small; else rows, target, the microseconds of a scan, the curve, and the setting, which
    is None where none reaches the target faster than a scan.
    """
    if len(searched.vectors) < MIN_ROWS or searched.vectors.shape[1] < 2:
        return {}
    index = _trained(searched)
    sample = np.sort(np.random.default_rng(1).choice(len(searched.vectors), _QUERIES, replace=False))
    truth, scan = _truth(searched, sample)
    curve = _curve(index, searched, sample, truth, scan)
    reaching = [setting for setting in curve if setting.low >= target and setting.microseconds < scan]
    chosen = min(reaching, key=lambda setting: setting.microseconds, default=None)
    if chosen is not None:
        faiss.write_index(index, str(folder / name))
    return {
        "kind": index_name(searched),
        "target": target,
        "scan_microseconds": round(scan, 1),
        "setting": None if chosen is None else asdict(chosen),
        "curve": [asdict(setting) for setting in curve],
    }


def index_name(searched: Searched) -> str:
    """Faiss's factory string: about 4 sqrt(n) lists, and 4 bits for every two dimensions."""
    count, dimension = searched.vectors.shape
    lists = 2 ** round(np.log2(4 * np.sqrt(count)))
    codes = next(number for number in range(max(1, dimension // 2), 0, -1) if dimension % number == 0)
    return f"IVF{lists},PQ{codes}x4fs"


def _trained(searched: Searched) -> Any:
    metric = faiss.METRIC_L2 if searched.metric == "l2" else faiss.METRIC_INNER_PRODUCT
    index: Any = faiss.index_factory(searched.vectors.shape[1], index_name(searched), metric)
    index.cp.niter = _ROUNDS
    count = min(len(searched.faced), _PER_LIST * index.nlist)
    sample = np.random.default_rng(0).choice(len(searched.faced), count, replace=False)
    index.train(searched.faced[np.sort(sample)])
    index.add(searched.faced)
    return index


def _truth(searched: Searched, rows: Array) -> tuple[Array, float]:
    """The true neighbours of these rows but for themselves, and a scan's microseconds for each."""
    (_, found), seconds = _timed(lambda: nearest(searched.vectors[rows], searched, _K + 1))
    return without_own(found, rows), seconds / len(rows) * 1e6


def without_own(found: Array, own: Array) -> Array:
    """Each query's rows (nq, k) of `found` (nq, k + 1), without its own, or else without the last."""
    order = np.argsort(found == own[:, None], axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1)[:, :-1]


def _curve(index: Any, searched: Searched, rows: Array, truth: Array, scan: float) -> list[Setting]:
    """Settings from fast to slow, up to the first number of lists that is slower than a scan."""
    queries = searched.vectors[rows]
    curve: list[Setting] = []
    for nprobe in (2**power for power in range(_FEWEST, int(np.log2(index.nlist)) + 1)):
        for factor in _FACTORS:
            trial = Approximate(index, Setting(nprobe, factor, 0.0, 0.0, 0.0, 0.0))
            (_, found), seconds = _timed(lambda trial=trial: trial.nearest(queries, searched, _K + 1, None))  # type: ignore[misc]
            hits = num_common(without_own(found, rows), truth)
            low, high = wilson(hits, truth.size)
            setting = Setting(nprobe, factor, hits / truth.size, low, high, round(seconds / len(rows) * 1e6, 1))
            curve.append(setting)
        if min(setting.microseconds for setting in curve[-len(_FACTORS) :]) > scan:
            break
    return curve


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """The answer, and the shorter of two runs in seconds: the first one may read files."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        answer = work()
        seconds.append(time.perf_counter() - start)
    return answer, min(seconds)


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
