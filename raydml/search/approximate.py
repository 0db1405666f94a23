"""A segment's vectors -> an index that finds most of the nearest rows much faster than a scan, where there is one.

Inverted lists (Faiss's IVF) of the vectors in half precision, or of 4-bit product-quantised codes (PQ fast-scan), whose
candidates are compared with the vectors. Which of the two, how many lists are probed and how many candidates are
compared is measured, not given: the fastest setting whose recall, beside an exact search, is surely above the target,
for vectors of the segment that the lists were not trained on. Where no setting is, or none is faster than the scan,
there is no index. Graphs (HNSW) are not used: Faiss's crash when vectors are added during a search, lose exact
duplicates, and were slower at the same recall (benchmarks/results/search.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from raydml.search.blas import for_batch
from raydml.search.items import Array
from raydml.search.nearest import Searched, faced_queries, nearest, rescored
from raydml.search.recall import num_common, wilson

MIN_ROWS = 20_000  # fewer are scanned: in 2 ms and less, for 128 dimensions
_QUERIES = 400, 4000  # searched to measure recall, at least and at most
_MISSES = 16  # of the hits of these queries that may be missed at the target: with few, one miss would decide
_K = 10
_FACTORS = {"Flat": (1,), "SQfp16": (1,), "PQ": (4, 10, 25, 60)}  # candidates compared for each hit
_HALF = 2.0**-10, 60_000.0  # the longest row's root mean square and its norm, between which float16 holds it well
_MOST_CANDIDATES = 4096
_SPARE = 4  # compared in float64 beyond k
_ROOM = 4  # times as many are found where some of them may be dead
_FEWEST = 1  # log2 of the lists probed at least: queries are seldom as near to their lists as stored vectors
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

    def _compared(self, queries: Array, searched: Searched, k: int, usable: Array | None) -> tuple[Array, Array]:
        asked = faced_queries(queries, searched.metric)
        kept = min(k + _SPARE, len(searched.vectors))
        room = 1 if usable is None else _ROOM
        depth = min(max(room * kept, k * self.setting.factor), len(searched.vectors))
        with for_batch(len(asked)):
            _, rows = _search(self.index)(asked, depth, params=self._parameters)
        if usable is not None:
            rows[~usable[rows]] = -1  # a row of -1 is already none
        if kept < depth:
            best = np.argpartition(_distances(asked, searched, rows), kept - 1, axis=1)[:, :kept]
            rows = np.take_along_axis(rows, best, axis=1)
        return rescored(queries, rows, searched, k)


def build(folder: Path, name: str, searched: Searched, target: float) -> dict[str, Any]:
    """Write an index to the file `name` in `folder`, if it is worth one; gives what the database keeps of it.

    {} for a segment that is too small; else rows, target, the microseconds of a scan, the curve, and the setting, which
    is None where there is no index.
    """
    if len(searched.vectors) < MIN_ROWS or searched.vectors.shape[1] < 2:
        return {}
    shuffled = np.random.default_rng(0).permutation(len(searched.vectors))
    count = _num_queries(target)
    asked, others = np.sort(shuffled[:count]), shuffled[count:]
    truth, scan = _truth(searched, asked)
    indexes = _trained(searched, others)
    curves = {kind: _curve(kind, index, searched, asked, truth, scan, target) for kind, index in indexes.items()}
    every = [(one, kind) for kind, curve in curves.items() for one in curve]
    good = [(one, kind) for one, kind in every if one.low >= target and one.microseconds < scan]
    chosen, kind = min(good, key=lambda pair: pair[0].microseconds, default=(None, "none"))
    if chosen is not None:
        faiss.write_index(indexes[kind], str(folder / name))
    return {
        "kind": kind if chosen is None else index_name(searched, kind),
        "target": target,
        "scan_microseconds": round(scan, 1),
        "setting": None if chosen is None else asdict(chosen),
        "curve": [{"kind": index_name(searched, kind)} | asdict(one) for one, kind in every],
    }


def index_name(searched: Searched, kind: str) -> str:
    """Faiss's factory string: about 4 sqrt(n) lists, of vectors (Flat, SQfp16) or of 4 bits for two dimensions."""
    count, dimension = searched.vectors.shape
    codes = next(number for number in range(max(1, dimension // 2), 0, -1) if dimension % number == 0)
    lists = 2 ** round(np.log2(4 * np.sqrt(count)))
    return f"IVF{lists}," + (f"PQ{codes}x4fs" if kind == "PQ" else kind)


def _trained(searched: Searched, sample: Array) -> dict[str, Any]:
    """An index of each kind, both with the same lists; `sample` are the rows that may be learned from."""
    metric = faiss.METRIC_L2 if searched.metric == "l2" else faiss.METRIC_INNER_PRODUCT
    dimension = searched.vectors.shape[1]
    codes: Any = faiss.index_factory(dimension, index_name(searched, "PQ"), metric)
    codes.cp.niter = _ROUNDS
    codes.train(searched.faced[np.sort(sample[: _PER_LIST * codes.nlist])])
    lists = codes.quantizer, dimension, codes.nlist
    whole: Any
    if _HALF[0] <= searched.longest / np.sqrt(dimension) and searched.longest <= _HALF[1]:
        kind = "SQfp16"  # half of the memory to read, and of the disk
        whole = faiss.IndexIVFScalarQuantizer(*lists, faiss.ScalarQuantizer.QT_fp16, metric, False)
        whole.train(searched.faced[:1])  # there is nothing to learn
    else:
        kind, whole = "Flat", faiss.IndexIVFFlat(*lists, metric)
    for index in (codes, whole):
        index.add(searched.faced)
    return {kind: whole, "PQ": codes}


def _num_queries(target: float) -> int:
    """As many as tell a recall at the target from one below it."""
    least, most = _QUERIES
    return int(np.clip(_MISSES / max(1 - target, 1e-6) / _K, least, most))


def _truth(searched: Searched, rows: Array) -> tuple[Array, float]:
    """The true neighbours of these rows but for themselves, and a scan's microseconds for each."""
    (_, found), seconds = _timed(lambda: nearest(searched.vectors[rows], searched, _K + 1))
    return without_own(found, rows), seconds / len(rows) * 1e6


def without_own(found: Array, own: Array) -> Array:
    """Each query's rows (nq, k) of `found` (nq, k + 1), without its own, or else without the last."""
    order = np.argsort(found == own[:, None], axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1)[:, :-1]


def _curve(
    kind: str, index: Any, searched: Searched, rows: Array, truth: Array, scan: float, target: float
) -> list[Setting]:
    """Settings from fast to slow, up to the first number of lists that is slower than a scan or one that is enough."""
    queries = searched.vectors[rows]
    curve: list[Setting] = []
    enough = scan
    for nprobe in (2**power for power in range(_FEWEST, int(np.log2(index.nlist)) + 1)):
        for factor in _FACTORS[kind]:
            trial = Approximate(index, Setting(nprobe, factor, 0.0, 0.0, 0.0, 0.0), scan)
            (_, found), seconds = _timed(lambda trial=trial: trial.nearest(queries, searched, _K + 1, None))  # type: ignore[misc]
            hits = num_common(without_own(found, rows), truth)
            low, high = wilson(hits, truth.size)
            setting = Setting(nprobe, factor, hits / truth.size, low, high, round(seconds / len(rows) * 1e6, 1))
            curve.append(setting)
            if low >= target:
                enough = min(enough, setting.microseconds)
        if min(setting.microseconds for setting in curve[-len(_FACTORS[kind]) :]) > enough:
            break
    return curve


def _search(index: Any) -> Any:
    """Its search for arrays, also where `faiss.contrib.torch_utils` was imported, whose search takes no parameters."""
    return getattr(index, "search_numpy", index.search)


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
