"""Retrieval on six data sets with six losses and equal CPU time: raw inputs beside trained models.

    python benchmarks/data_sets.py FOLDER [--sets glyphs ...] [--losses circle ...] [--seeds 0 1 2] [--seconds 20]

A cell is one set, loss and seed, trained in this process on one thread (the bits do not depend on workers). How many
steps take `--seconds` of CPU time is measured once for each set and loss. Sets are built into FOLDER where they are
not there yet; each finished cell is a line of FOLDER/cells.jsonl and is not computed again, so a folder is for one
number of seconds. Prints the table of all lines. Losses keep their published hyperparameters; a loss's learning rate
is the best of four on validation classes of glyphs (of bitext for texts), seed 0, and nothing is chosen by what a test
split says.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from training import heading

from raydml.data import Dataset, open_dataset
from raydml.datasets import build
from raydml.evaluation import baseline, intervals, summarise
from raydml.files import append_line
from raydml.parallel import Group
from raydml.spec import JobSpec
from raydml.training.evaluate import embed_split, values_of_split
from raydml.training.loop import StepReport
from raydml.training.record import read_lines
from raydml.training.worker import Job, Worker

METRICS = ("precision_at_1", "map_at_r")
SIZES = {"test": 4000, "validation": 2000}  # items of a sample for measuring
TURNS, STEPS_A_TURN = 6, 4  # of the timing; the first turn does not count
DIMENSION = 128
SLICES = 8
ALONE = Group(0, 1, SLICES)
CPU = torch.device("cpu")
Found = dict[str, Any]

IMAGES = {"augment": {"shift": 0.08, "rotate": 8, "scale": 0.1}}
CNN = {"kind": "small_cnn", "width": 16}
SETS: dict[str, Found] = {
    "glyphs": {"data": {"kind": "glyphs", **IMAGES}},
    "icons": {
        "data": {"kind": "manifest", "path": "icons/manifest.parquet", "image_size": 32, "grayscale": True, **IMAGES}
    },
    "emoji": {"data": {"kind": "manifest", "path": "emoji/manifest.parquet", "image_size": 32, **IMAGES}},
    "cjk_glyphs": {"data": {"kind": "arrays", "path": "cjk_glyphs", "grayscale": True, **IMAGES}},
    "bitext": {
        "data": {"kind": "manifest", "path": "bitext/manifest.jsonl", "text": {"kind": "ngrams"}},
        "backbone": {"kind": "ngram_bag"},
    },
    "fashion_mnist": {
        "data": {"kind": "arrays", "path": "fashion_mnist", "image_size": 28, "grayscale": True, **IMAGES},
        "batch": {"classes": 8, "samples": 16},
    },
}
LOSSES: dict[str, Found] = {
    # Wang et al. 2019: alpha 2, beta 50, epsilon 0.1; base 0.5 as in pytorch-metric-learning
    "multi_similarity": {"kind": "multi_similarity", "miner": {"kind": "multi_similarity"}},
    # Schroff et al. 2015: squared distances of unit vectors, margin 0.2
    "triplet, semihard": {
        "kind": "triplet",
        "margin": 0.2,
        "distance": {"kind": "euclidean", "power": 2},
        "miner": {"kind": "semihard", "margin": 0.2},
    },
    # pytorch-metric-learning: distances of unit vectors, positives to 0, negatives beyond 1
    "contrastive": {"kind": "contrastive"},
    # Khosla et al. 2020: temperature 0.1
    "sup_con": {"kind": "sup_con"},
    # Sun et al. 2020: m 0.4, gamma 80
    "circle": {"kind": "circle"},
    # Deng et al. 2019: margin 0.5 rad, scale 64
    "arcface": {"kind": "arcface"},
}
# With classes on their owners, only where --losses names them.
HEADS: dict[str, Found] = {
    # Wang et al. 2018: margin 0.35, scale 64
    "cosface, on owners": {"kind": "cosface", "class_parallel": True},
    # An et al. 2022 (PartialFC): a tenth of the classes of others
    "cosface, a tenth": {"kind": "cosface", "class_parallel": {"sample_rate": 0.1}},
    # Temperature 0.1 in place of 0.05 and of the scales of 64 above: 100 steps are few
    "normalized softmax, on owners": {"kind": "normalized_softmax", "temperature": 0.1, "class_parallel": True},
}
ALL = LOSSES | HEADS
# Class vectors faster than the model, as Kim et al. 2020 (Proxy-Anchor) train proxies.
OPTIMIZERS: dict[str, Found] = {loss: {"parts": {"loss": 10}} for loss in ("arcface", *HEADS)}
RATES = (0.001, 0.003, 0.01, 0.03)


@dataclass(frozen=True)
class Cell:
    """One line: what was measured, of `queries` items; `loss` is None for raw inputs, CPU time in seconds."""

    data: str
    loss: str | None
    seed: int
    rate: float
    steps: int
    cpu: float
    alarms: list[str]  # rules of `watch` that were broken
    queries: int
    classes: int
    metrics: dict[str, float]
    over_queries: dict[str, tuple[float, float]]
    over_classes: dict[str, tuple[float, float]]


class Bench:
    """Data sets that stay open, and the file of finished cells."""

    def __init__(self, folder: Path, seconds: float, losses: list[str]) -> None:
        self.folder, self.seconds, self.losses = folder, seconds, losses
        self.lines = folder / "cells.jsonl"
        self.open = cache(self._open)

    def read(self, kind: str) -> list[Found]:
        """Finished lines of a kind: `cell`, `trial` (a cell measured on validation) or `pace`."""
        lines = read_lines(self.lines)[0] if self.lines.exists() else []
        return [line[kind] for line in lines if kind in line]

    def cells(self, kind: str = "cell") -> list[Cell]:
        """Finished cells or trials, in the order that they were finished in."""
        return [Cell(**line) for line in self.read(kind)]

    def add(self, **line: Found) -> None:
        """One more line."""
        append_line(self.lines, json.dumps(line))

    def spec(self, data: str, loss: str, seed: int = 0, steps: int = 1, rate: float = RATES[0]) -> JobSpec:
        """The job of one cell."""
        setting = SETS[data]
        path = {"path": str(self.folder / setting["data"]["path"])} if "path" in setting["data"] else {}
        return JobSpec.model_validate(
            {
                "name": "datasets",
                "seed": seed,
                "data": setting["data"] | path,
                "batch": {"classes": 32, "samples": 4, "virtual_workers": SLICES} | setting.get("batch", {}),
                "model": {"backbone": setting.get("backbone", CNN), "dimension": DIMENSION},
                "loss": ALL[loss],
                "train": {
                    "steps": steps,
                    "optimizer": {"kind": "adamw", "lr": rate} | OPTIMIZERS.get(loss, {}),
                    "schedule": {"kind": "cosine", "warmup_steps": 5},
                    "evaluate_every": 0,
                },
                "watch": {"every": 20},
            }
        )

    def _open(self, data: str) -> Dataset:
        if "path" in SETS[data]["data"] and not (self.folder / data).exists():
            build(data, self.folder / data)
        return open_dataset(self.spec(data, "contrastive").data, self.folder)

    def worker(self, spec: JobSpec, data: str) -> Worker:
        """One that has not begun."""
        return Worker(Job(spec, self.folder / "run", self.folder, None), ALONE, CPU, self.open(data))

    def steps(self, data: str, loss: str) -> int:
        """Steps that fill the CPU time: measured now, or as an earlier call found."""
        found = [pace for pace in self.read("pace") if (pace["data"], pace["seconds"]) == (data, self.seconds)]
        steps: dict[str, int] = (found[0] if found else self.pace(data))["steps"]
        return steps[loss]

    def pace(self, data: str) -> Found:
        """CPU seconds a step of each loss, in turns, so that a slower minute of the machine hits all alike."""
        workers = {loss: self.worker(self.spec(data, loss, steps=TURNS * STEPS_A_TURN), data) for loss in self.losses}
        times: dict[str, list[float]] = {loss: [] for loss in self.losses}
        for turn in range(TURNS):
            for loss, worker in workers.items():
                begun = time.process_time()
                worker.trainer.run((turn + 1) * STEPS_A_TURN, lambda _: True)
                times[loss].append((time.process_time() - begun) / STEPS_A_TURN)
        each = {loss: median(taken[1:]) for loss, taken in times.items()}
        steps = {loss: max(1, round(self.seconds / cpu)) for loss, cpu in each.items()}
        pace = {"data": data, "seconds": self.seconds, "cpu_a_step": each, "steps": steps}
        self.add(pace=pace)
        return pace

    def rate(self, data: str, loss: str) -> float:
        """The learning rate that does best on validation classes, tried now or by an earlier call."""
        on = "bitext" if data == "bitext" else "glyphs"
        tried = {trial.rate for trial in self.cells("trial") if (trial.data, trial.loss) == (on, loss)}
        for rate in RATES:
            if rate not in tried:
                self.add(trial=asdict(self.trained(on, loss, 0, rate, "validation")))
        trials = [trial for trial in self.cells("trial") if (trial.data, trial.loss) == (on, loss)]
        return max(trials, key=lambda trial: trial.metrics["map_at_r"]).rate

    def raw(self, data: str) -> Cell:
        """The baseline that a run reports beside its model."""
        dataset = self.open(data)
        items = sampled(dataset, "test")
        known: Found = {"data": data, "loss": None, "seed": 0, "rate": 0.0, "steps": 0, "cpu": 0.0}
        return measured(dataset, items, baseline(dataset.raw(items)), **known)

    def trained(self, data: str, loss: str, seed: int, rate: float, split: str) -> Cell:
        """One cell, from fresh weights to the metrics."""
        steps = self.steps(data, loss)
        worker = self.worker(self.spec(data, loss, seed, steps, rate), data)
        alarms: set[str] = set()

        def look(report: StepReport) -> bool:
            alarms.update(alarm.rule for alarm in report.health.alarms)
            return True

        begun = time.process_time()
        worker.trainer.run(steps, look)
        cpu = time.process_time() - begun
        items = sampled(worker.dataset, split)
        embeddings = embed_split(worker.trainer.model, worker.dataset, items, ALONE, DIMENSION)
        known: Found = {"data": data, "loss": loss, "seed": seed, "rate": rate, "steps": steps, "cpu": cpu}
        return measured(worker.dataset, items, embeddings, alarms=sorted(alarms), **known)


def sampled(dataset: Dataset, split: str) -> np.ndarray[Any, Any]:
    """Ascending items of a split: whole classes drawn until there are enough, or, where all are needed, some of each.

    The same for every loss and seed.
    """
    items, size = dataset.indices(split), SIZES[split]
    labels = dataset.items.labels[items]
    random = np.random.default_rng(0)
    if len(items) <= size:
        return items
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) <= 100:
        return np.sort(random.permutation(items)[:size])
    order = random.permutation(len(classes))
    enough = int(np.searchsorted(np.cumsum(counts[order]), size)) + 1
    return items[np.isin(labels, classes[order[:enough]])]


def measured(
    dataset: Dataset,
    items: np.ndarray[Any, Any],
    vectors: np.ndarray[Any, Any],
    *,
    alarms: Iterable[str] = (),
    **known: Any,
) -> Cell:
    """Metrics of these items' vectors, each a query among all others, and both intervals that raydml offers."""
    values = values_of_split(vectors, dataset, items, "cosine", ALONE)
    values = {name: values[name] for name in METRICS}
    labels = dataset.items.labels[items]
    return Cell(
        **known,
        alarms=list(alarms),
        queries=len(items),
        classes=len(np.unique(labels)),
        metrics={name: summarise(values)[name] for name in METRICS},
        over_queries=intervals(values, confidence=0.95, repeats=1000, seed=0),
        over_classes=intervals(values, confidence=0.95, repeats=1000, seed=0, classes=labels),
    )


def table(cells: list[Cell]) -> list[str]:
    """Markdown: a row for each set and loss, the seeds together."""
    sides = "(seeds) | 95 % over queries | over classes"
    lines = [
        f"| data | loss | rate | steps | CPU-s | seeds | P@1 {sides} | MAP@R {sides} |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for data in SETS:
        for loss in (None, *ALL):
            seeds = [cell for cell in cells if (cell.data, cell.loss) == (data, loss)]
            if seeds:
                lines.append(f"| {' | '.join(row(seeds))} |")
    return lines


def row(seeds: list[Cell]) -> list[str]:
    """Means over the seeds, of the intervals' ends too; in brackets the lowest and the highest seed."""
    first = seeds[0]
    name = first.loss or f"raw, {first.queries:,} of {first.classes:,} classes"
    cpu = mean(cell.cpu for cell in seeds)
    cost = [f"{first.rate:g}", str(first.steps), f"{cpu:.1f}", str(len(seeds))] if first.loss else ["-"] * 4
    cells = [first.data, name, *cost]
    for metric in METRICS:
        values = [cell.metrics[metric] for cell in seeds]
        spread = f" ({span(min(values), max(values))})" if len(values) > 1 else ""
        cells.append(f"{number(mean(values))}{spread}")
        for bounds in ("over_queries", "over_classes"):
            low, high = zip(*(getattr(cell, bounds)[metric] for cell in seeds), strict=True)
            cells.append(span(mean(low), mean(high)))
    return cells


def span(low: float, high: float) -> str:
    """`.123 - .456`"""
    return f"{number(low)} - {number(high)}"


def number(value: float) -> str:
    """A share to three digits."""
    return f"{value:.3f}".removeprefix("0")


def main() -> None:
    """Parse, fill in what is missing, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the data and the finished cells")
    parser.add_argument("--sets", nargs="*", choices=SETS, default=list(SETS))
    parser.add_argument("--losses", nargs="*", choices=ALL, default=list(LOSSES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=20, help="CPU time of training a cell")
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # torch tells of deprecations
    bench = Bench(given.folder.absolute(), given.seconds, given.losses)
    bench.folder.mkdir(parents=True, exist_ok=True)
    finished = {(cell.data, cell.loss, cell.seed) for cell in bench.cells()}
    for data in given.sets:
        if (data, None, 0) not in finished:
            bench.add(cell=asdict(bench.raw(data)))
    for seed in given.seeds:
        for data in given.sets:
            for loss in given.losses:
                if (data, loss, seed) not in finished:
                    bench.add(cell=asdict(bench.trained(data, loss, seed, bench.rate(data, loss), "test")))
    print("\n".join([*heading(), *table(bench.cells())]))


if __name__ == "__main__":
    main()
