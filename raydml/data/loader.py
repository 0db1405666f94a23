"""Dataset, plan and the wanted (step, slice) keys in; slices ready for the model out, in the order of the keys."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raydml.data.augment import Augmentation
from raydml.data.dataset import Dataset
from raydml.data.plan import SamplingPlan
from raydml.spec import DataSpec

_AHEAD = 2  # slices in work per loader process
Arrays = tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Slice:
    """S consecutive rows of one global batch."""

    step: int
    index: int
    inputs: torch.Tensor  # (S, *input_shape) float32; token ids int64
    labels: torch.Tensor  # (S,) int64, dense training labels
    items: NDArray[np.int64]  # (S,) item numbers in the dataset


def slices(
    dataset: Dataset,
    plan: SamplingPlan,
    spec: DataSpec,
    seed: int,
    keys: Iterable[tuple[int, int]],
    loader_processes: int,
) -> Iterator[Slice]:
    """Yield the slices named by `keys`, pairs (step, slice), which may never end.

    A slice depends on (dataset, plan, spec.augment, seed, step, slice) alone: any order, subset or number of
    processes gives the same pixels. With processes, at most two keys a process are read ahead. The processes end when
    the iterator is exhausted, closed or dropped, or when this process dies. DataError names an item that went bad.
    """
    preparer = _Preparer(dataset, plan, Augmentation(spec.augment, seed))
    prepared = _in_processes(preparer, keys, loader_processes) if loader_processes else _here(preparer, keys)
    for (step, index), (inputs, labels, items) in prepared:
        yield Slice(step, index, torch.from_numpy(inputs), torch.from_numpy(labels), items)


class _Preparer:
    """One key in, the arrays of its slice out; numpy and Pillow only, as torch's threads do not survive a fork."""

    def __init__(self, dataset: Dataset, plan: SamplingPlan, augmentation: Augmentation) -> None:
        self.dataset, self.plan, self.augmentation = dataset, plan, augmentation
        self.training_items = dataset.indices("train")
        self.training_labels = dataset.training_labels

    def __call__(self, key: tuple[int, int]) -> Arrays:
        step, index = key
        positions = self.plan.slice(step, index)
        rows = index * len(positions) + np.arange(len(positions))
        items = self.training_items[positions]
        preprocessing = self.dataset.preprocessing
        decoded = np.stack([self.dataset.read(item) for item in items.tolist()])
        if preprocessing.kind == "image":
            decoded = self.augmentation.images(decoded, step, rows)
        inputs = self.augmentation.inputs(preprocessing.normalised(decoded), step, rows)
        return inputs, self.training_labels[positions], items


Prepared = Iterator[tuple[tuple[int, int], Arrays]]


def _here(preparer: _Preparer, keys: Iterable[tuple[int, int]]) -> Prepared:
    for key in keys:
        yield key, preparer(key)


def _in_processes(preparer: _Preparer, keys: Iterable[tuple[int, int]], processes: int) -> Prepared:
    executor = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("fork"),  # the dataset is inherited, not copied
        initializer=_start,
        initargs=(preparer, os.getpid()),
    )
    try:
        remaining = iter(keys)
        waiting: deque[tuple[tuple[int, int], Future[Arrays]]] = deque()
        for key in islice(remaining, _AHEAD * processes):
            waiting.append((key, executor.submit(_prepare, key)))
        while waiting:
            key, future = waiting.popleft()
            arrays = future.result()
            for following in islice(remaining, 1):
                waiting.append((following, executor.submit(_prepare, following)))
            yield key, arrays
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


_process: dict[str, _Preparer] = {}  # filled in loader processes only


def _start(preparer: _Preparer, parent: int) -> None:
    """Take over the work; leave signals to the parent, and leave with it."""
    _process["preparer"] = preparer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)  # a killed parent cannot close the pipes that this process waits on


def _prepare(key: tuple[int, int]) -> Arrays:
    return _process["preparer"](key)
