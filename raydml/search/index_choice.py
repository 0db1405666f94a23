"""A segment's vectors -> the index that finds most of the nearest rows much faster than a scan, where there is one.

Whether lists hold vectors or codes, how many lists are probed and how many candidates are compared is measured, not
given: the fastest setting whose recall, beside an exact search, is surely above the target, for vectors of the segment
that the lists were not trained on. Where no setting is, or none is faster than the scan, there is no index.

Unit rows, for cosine, are looked for by their Euclidean distance: a code is shorter than its vector, and an inner
product with it ranks worse: five times as many candidates are needed. Where inner products are asked for, codes are of
what is left without the list's centre: more exact, and for inner products as fast.

Graphs (HNSW) are not used: Faiss's crash when vectors are added during a search, lose exact duplicates, and were slower
at the same recall (benchmarks/results/search.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np

from raydml.search.approximate import Approximate, Setting
from raydml.search.items import Array
from raydml.search.nearest import Searched, faced_queries, nearest
from raydml.search.recall import num_common, wilson

MIN_ROWS = 20_000  # fewer are scanned: in 2 ms and less, for 128 dimensions
_QUERIES = 400, 4000  # searched to measure recall, at least and at most
_MISSES = 16  # of the hits of these queries that may be missed at the target: with few, one miss would decide
_K = 10
_FACTORS = {"Flat": (1,), "SQfp16": (1,), "PQ": (3, 4, 5, 7, 10, 15, 25, 40, 60)}  # candidates compared for each hit
_HALF = 2.0**-10, 60_000.0  # the longest row's root mean square and its norm, between which float16 holds it well
_FEWEST = 2  # lists probed at least: queries are seldom as near to their lists as stored vectors
_LISTS = 2, 4  # times the square root of the rows; the second where the first's have to be probed in numbers
_FEW = 1 / 16  # of the lists: where no more are probed, the vectors lie in clusters that the lists follow
_PER_LIST = 64  # training vectors for each list
_ROUNDS = 12  # of k-means


class _Measured(NamedTuple):
    """What settings are measured on."""

    searched: Searched
    rows: Array  # of the stored vectors that are searched for
    truth: Array  # the true neighbours of each
    scan: float  # microseconds of an exact search for each


def build(folder: Path, file: str, searched: Searched, target: float) -> dict[str, Any]:
    """Write an index to this file in `folder`, if it is worth one; gives what the database keeps of it.

    {} for a segment that is too small; else rows, target, the microseconds of a scan, the curve, and the setting, which
    is None where there is no index.
    """
    if len(searched.vectors) < MIN_ROWS or searched.vectors.shape[1] < 2:
        return {}
    shuffled = np.random.default_rng(0).permutation(len(searched.vectors))
    count = _num_queries(target)
    asked, others = np.sort(shuffled[:count]), shuffled[count:]
    truth, scan = _truth(searched, asked)
    measured = _Measured(searched, asked, truth, scan)
    metric = faiss.METRIC_INNER_PRODUCT if searched.metric == "inner_product" else faiss.METRIC_L2
    curve: list[dict[str, Any]] = []
    chosen: tuple[Setting, str] | None = None
    for share in _LISTS:
        lists = 2 ** round(np.log2(share * np.sqrt(len(searched.vectors))))
        for kind, index in _trained(searched, others, lists, metric).items():
            fastest = scan if chosen is None else chosen[0].microseconds
            settings = _curve(index, _FACTORS[kind], measured, target, fastest)
            name = index_name(kind, lists, searched.vectors.shape[1], metric)
            curve += [{"kind": name} | asdict(one) for one in settings]
            good = [one for one in settings if one.low >= target and one.microseconds < fastest]
            if good:
                chosen = min(good, key=lambda one: one.microseconds), name
                faiss.write_index(index, str(folder / file))
        if chosen is not None and chosen[0].nprobe <= _FEW * lists:
            break
    return {
        "kind": "none" if chosen is None else chosen[1],
        "target": target,
        "scan_microseconds": round(scan, 1),
        "setting": None if chosen is None else asdict(chosen[0]),
        "curve": curve,
    }


def index_name(kind: str, lists: int, dimension: int, metric: int) -> str:
    """Faiss's factory string: lists of vectors (Flat, SQfp16), or of 4 bits for two dimensions, of residuals or not."""
    codes = next(number for number in range(max(1, dimension // 2), 0, -1) if dimension % number == 0)
    residual = "r" if metric == faiss.METRIC_INNER_PRODUCT else ""
    return f"IVF{lists}," + (f"PQ{codes}x4fs{residual}" if kind == "PQ" else kind)


def _trained(searched: Searched, sample: Array, number: int, metric: int) -> dict[str, Any]:
    """An index of each kind, both with the same lists, so many; `sample` are the rows that may be learned from."""
    dimension = searched.vectors.shape[1]
    codes: Any = faiss.index_factory(dimension, index_name("PQ", number, dimension, metric), metric)
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


def _curve(index: Any, factors: Sequence[int], measured: _Measured, target: float, enough: float) -> list[Setting]:
    """Settings of more and more lists, up to the first that takes more microseconds than what is `enough`."""
    searched, rows, truth, scan = measured
    queries = searched.vectors[rows]
    curve: list[Setting] = []
    for nprobe in _steps(index.nlist):
        trial = Approximate(index, Setting(nprobe, 1, 0.0, 0.0, 0.0, 0.0), scan)
        if len(factors) > 1:
            factor = _factor(trial, factors, measured, target)
            trial = Approximate(index, replace(trial.setting, factor=factor), scan)
        (_, found), seconds = _timed(lambda trial=trial: trial.nearest(queries, searched, _K + 1, None))  # type: ignore[misc]
        hits = num_common(without_own(found, rows), truth)
        low, high = wilson(hits, truth.size)
        microseconds = round(seconds / len(rows) * 1e6, 1)
        curve.append(Setting(nprobe, trial.setting.factor, hits / truth.size, low, high, microseconds))
        if low >= target:
            enough = min(enough, microseconds)
        if microseconds > enough:
            break
    return curve


def _steps(lists: int) -> list[int]:
    """Numbers of lists to probe, each a third or a half more than the one before."""
    powers = [2**power for power in range(int(np.log2(lists)) + 1)]
    return sorted(number for number in {*powers, *(3 * power // 2 for power in powers)} if _FEWEST <= number <= lists)


def _factor(trial: Approximate, factors: Sequence[int], measured: _Measured, target: float) -> int:
    """The fewest candidates for each hit that find what the target asks for, or else what the most find.

    A true neighbour is found where it is among the candidates, as these are then compared exactly.
    """
    searched, rows, truth, _ = measured
    asked = faced_queries(searched.vectors[rows], searched.metric)
    found = trial.candidates(asked, min(factors[-1] * (_K + 1), len(searched.vectors)))
    same = found[:, :, None] == truth[:, None, :]
    ranks = np.where(same.any(axis=1), same.argmax(axis=1), found.shape[1])
    hits = [int((ranks < factor * (_K + 1)).sum()) for factor in factors]
    enough = (factor for factor, count in zip(factors, hits, strict=True)
              if count == hits[-1] or wilson(count, truth.size)[0] >= target)  # fmt: skip
    return next(enough)


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """The answer, and the shorter of two runs in seconds: the first one may read files."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        answer = work()
        seconds.append(time.perf_counter() - start)
    return answer, min(seconds)
