"""What every source gives: rows as they were found, before anything is checked or numbered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raydml.data.contents import Contents
from raydml.data.dataset import SPLITS, Dataset, Items
from raydml.data.preprocessing import Preprocessing
from raydml.data.splits import split_classes
from raydml.errors import DataError


@dataclass(frozen=True)
class Table:
    """One row per item; a column that is None takes its default.

    splits: by default classes are divided by `split_classes`. is_query, is_gallery: by default all items are both.
    extras: what the payload holds beside the label.
    """

    ids: Sequence[str]
    labels: Sequence[str]
    contents: Contents
    preprocessing: Preprocessing
    splits: Sequence[str] | None = None
    is_query: Sequence[bool] | None = None
    is_gallery: Sequence[bool] | None = None
    extras: Sequence[dict[str, Any]] | None = None


def checked_dataset(table: Table, skip: bool) -> Dataset:
    """Read everything once, leave bad items out (`skip`) or refuse them, and number what remains."""
    _check_columns(table)
    checked = table.contents.check(skip)
    if not checked.kept:
        raise DataError(f"no item is left of {len(table.ids)}: {len(checked.skipped)} were bad and skipped")
    rows = np.array(checked.kept)
    labels = [table.labels[row] for row in checked.kept]
    names = sorted(set(labels), key=_order)
    if len(names) < 2:
        raise DataError(f"all {len(labels)} items are of the one class {names[0]!r}: metric learning needs at least 2")
    numbers = {name: number for number, name in enumerate(names)}
    items = Items(
        ids=tuple(table.ids[row] for row in checked.kept),
        labels=np.array([numbers[label] for label in labels], np.int64),
        class_names=tuple(names),
        splits=np.array(_splits(table, checked.kept, labels)),
        is_query=_roles(table.is_query, len(table.ids))[rows],
        is_gallery=_roles(table.is_gallery, len(table.ids))[rows],
        payloads=tuple(
            (table.extras[row] if table.extras else {}) | {"label": label}
            for row, label in zip(checked.kept, labels, strict=True)
        ),
    )
    return Dataset(items, table.contents, table.preprocessing, checked.digests, checked.skipped)


def _check_columns(table: Table) -> None:
    if not table.ids:
        raise DataError("the data holds no items")
    name, count = Counter(table.ids).most_common(1)[0]
    if count > 1:
        raise DataError(f"the id {name!r} stands {count} times: give each item its own in a column `id`")
    for row, split in enumerate(table.splits or ()):
        if split not in SPLITS:
            raise DataError(
                f"row {row} ({table.ids[row]}) is of split {split!r}: choose from {', '.join(SPLITS)}", row=row
            )


def _splits(table: Table, kept: Sequence[int], labels: Sequence[str]) -> list[str]:
    if table.splits is not None:
        return [table.splits[row] for row in kept]
    of_class = split_classes(labels)
    return [of_class[label] for label in labels]


def _roles(given: Sequence[bool] | None, size: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.ones(size, bool) if given is None else np.array(given, bool)


def _order(name: str) -> tuple[int, int, str]:
    """Numbers by their value, then words by the alphabet."""
    number = name.isdecimal()
    return (0, int(name), name) if number else (1, 0, name)
