"""Queries with their neighbours, or a run's metrics file, in; PNG pictures out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

HIT, MISS, QUERY = "#2a9d4a", "#d1344b", "#444444"
FRAME = 3.5  # points


@dataclass(frozen=True, eq=False)
class Tile:
    """One picture, uint8 (H, W) or (H, W, C), and the class that it shows."""

    image: NDArray[Any]
    label: str


@dataclass(frozen=True, eq=False)
class Row:
    """A query and its neighbours, nearest first."""

    query: Tile
    neighbours: Sequence[Tile]


def draw_neighbours(rows: Sequence[Row], path: Path) -> None:
    """One row a query: itself on the left, then its neighbours, hits framed green and misses red."""
    columns = 1 + max(len(row.neighbours) for row in rows)
    figure = Figure(figsize=(0.85 * columns, 0.85 * len(rows) + 0.5), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, row in zip(grid, rows, strict=True):
        _draw(axes[0], row.query, QUERY)
        for place, tile in zip(axes[1:], row.neighbours, strict=False):
            _draw(place, tile, HIT if tile.label == row.query.label else MISS)
    figure.suptitle("query, then its nearest neighbours: green the same class, red another", fontsize=9)
    _save(figure, path)


def _draw(axes: Axes, tile: Tile, color: str) -> None:
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks([])
    axes.imshow(np.squeeze(tile.image), cmap="gray", vmin=0, vmax=255)
    for side in axes.spines.values():
        side.set_color(color)
        side.set_linewidth(FRAME)


def draw_curves(metrics_file: Path, path: Path, baseline: float | None = None) -> None:
    """The loss at every step, and MAP@R on validation; `baseline` is MAP@R of raw pixels on test, a dashed line."""
    losses, scores = read_metrics(metrics_file)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([step for step, _ in losses], [loss for _, loss in losses], linewidth=1)
    left.set(xlabel="step", ylabel="loss")
    right.plot([step for step, _ in scores], [score for _, score in scores], marker="o", label="validation")
    if baseline is not None:
        right.axhline(baseline, color=QUERY, linestyle="--", linewidth=1, label="raw pixels, test")
    if scores or baseline is not None:
        right.legend(frameon=False)
    right.set(xlabel="step", ylabel="MAP@R", ylim=(0, 1))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def read_metrics(path: Path) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """(step, loss) and (step, MAP@R on validation) of a run's metrics.jsonl."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    scores = [(line["step"], line["validation"]["map_at_r"]) for line in lines if "validation" in line]
    return losses, scores


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
