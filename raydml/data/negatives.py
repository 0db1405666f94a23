"""Hard negatives that a collection has exported -> the classes that training should meet together, for a start."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raydml.data.dataset import Dataset
from raydml.errors import DataError


def exported_neighbours(path: Path, dataset: Dataset, count: int) -> NDArray[np.int64]:
    """(C, count) training labels of the classes that were taken for each class most often, -1 where fewer were.

    A line is an item: its `label`, and `negatives` with a `label` each; labels are names of classes. Lines of classes
    that training does not have are passed over. DataError where the file is unreadable, or none of it is of use.
    """
    numbers = _numbers(dataset)
    taken: dict[int, Counter[int]] = {}
    for label, others in _lines(path):
        if label in numbers:
            known = (numbers[other] for other in others if other in numbers)
            taken.setdefault(numbers[label], Counter()).update(number for number in known if number != numbers[label])
    if not any(taken.values()):
        raise DataError(
            f"batch.sampling.negatives: {path} names no two training classes of this data "
            f"({', '.join(sorted(numbers)[:3])}, ...): export it with the payload field that holds the label"
        )
    table = np.full((dataset.num_training_classes, count), -1)
    for number, found in taken.items():
        most = sorted(found, key=lambda other: (-found[other], other))[:count]
        table[number, : len(most)] = most
    return table


def _numbers(dataset: Dataset) -> dict[str, int]:
    """Names of the training classes, with their training labels."""
    names = [dataset.items.class_names[label] for label in dataset.items.labels[dataset.indices("train")].tolist()]
    return dict(zip(names, dataset.training_labels.tolist(), strict=True))


def _lines(path: Path) -> list[tuple[str, list[str]]]:
    try:
        documents = [json.loads(line) for line in path.read_text().splitlines()]
        return [(str(item["label"]), [str(other["label"]) for other in item["negatives"]]) for item in documents]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"batch.sampling.negatives: {path} is not an export of hard negatives: {error!r}") from error
