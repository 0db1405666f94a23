"""Items and where their contents lie in; arrays, tensors, labels and a report of the whole out."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raydml.data.contents import Contents, Repeated
from raydml.data.preprocessing import Preprocessing
from raydml.errors import DataError

SPLITS = ("train", "validation", "test")
_EXAMPLES = 10  # pairs of identical images that a report names
_COUNTED = 1024  # columns of a text's raw counts
Numbers = Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Items:
    """One row per item, in the same order everywhere."""

    ids: tuple[str, ...]
    labels: NDArray[np.int64]  # (N,) positions in class_names
    class_names: tuple[str, ...]
    splits: NDArray[np.str_]  # (N,) of "train", "validation", "test"
    is_query: NDArray[np.bool_]  # (N,)
    is_gallery: NDArray[np.bool_]  # (N,)
    payloads: tuple[dict[str, Any], ...]  # the label's name and the extra columns


@dataclass(frozen=True)
class DataReport:
    """What was found in the data; nothing here is an error."""

    images: dict[str, int]  # items by split
    classes: dict[str, int]  # different classes by split
    shared_classes: int  # classes in both train and test
    num_duplicates: int  # items of test whose content also stands in train
    duplicates: tuple[tuple[str, str], ...]  # some of them: (id in train, id in test)
    skipped: tuple[tuple[str, str], ...]  # bad items left out: (name, reason)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class Dataset:
    """Items that can be read by number; pickles, without the decoded pictures that it keeps in memory."""

    def __init__(
        self,
        items: Items,
        contents: Contents,
        preprocessing: Preprocessing,
        digests: Sequence[str],
        skipped: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.items = items
        self.preprocessing = preprocessing
        self.input_shape = preprocessing.shape
        self.fingerprint = _fingerprint(items, preprocessing, digests)
        self.report = _report(items, digests, skipped)
        classes, dense = np.unique(items.labels[self.indices("train")] if len(items.ids) else [], return_inverse=True)
        self.num_training_classes = len(classes)
        self._training_labels = dense.astype(np.int64)
        self._contents = contents
        self._digests = tuple(digests)

    @property
    def training_labels(self) -> NDArray[np.int64]:
        """(num_train,) labels of the items `indices("train")`, numbered 0..num_training_classes-1 without gaps."""
        return self._training_labels

    def indices(self, split: str) -> NDArray[np.int64]:
        """Ascending item numbers of a split, or of `all`."""
        if split == "all":
            return np.arange(len(self.items.ids))
        if split not in SPLITS:
            raise DataError(f"there is no split {split!r}: choose from {', '.join(SPLITS)} and all")
        return np.flatnonzero(self.items.splits == split)

    def digest(self, items: Numbers) -> str:
        """SHA-256 over ids, class names and contents of these items, in their order; not of how they are prepared."""
        names, table = self.items.class_names, self.items
        total = hashlib.sha256()
        for item in items:
            total.update(json.dumps([table.ids[item], names[table.labels[item]], self._digests[item]]).encode())
        return total.hexdigest()

    def divided(self, splits: NDArray[np.str_]) -> Dataset:
        """The same items in other splits, (N,)."""
        items = replace(self.items, splits=splits)
        return Dataset(items, self._contents, self.preprocessing, self._digests, self.report.skipped)

    def repeating(self, number: int) -> Dataset:
        """The same items and labels with the contents of the first training items only, held in memory."""
        result = copy.copy(self)
        result._contents = Repeated(self._stack(self.indices("train")[:number]))
        return result

    def read(self, item: int) -> NDArray[Any]:
        """uint8 (H, W, C) of an image, float32 `input_shape` of a vector, int64 (length,) of a text.

        DataError names a file that went bad.
        """
        return self._contents.read(item)

    def tensors(self, items: Numbers) -> torch.Tensor:
        """(n, *input_shape) float32 (token ids int64), preprocessed, without augmentation."""
        if len(items):
            return self.preprocessing.tensor(self._stack(items))
        return torch.zeros(0, *self.input_shape, dtype=self.preprocessing.type)

    def raw(self, items: Numbers) -> NDArray[np.float32]:
        """(n, D) float32, flattened: pixels as fractions of white in [0, 1], vectors as they are.

        Texts are counts of their tokens, by id modulo 1024.
        """
        if self.preprocessing.kind == "tokens":
            return _counts(self._stack(items) if len(items) else np.zeros((0, 1), np.int64))
        if not len(items):
            return np.zeros((0, int(np.prod(self.input_shape))), np.float32)
        flat = self._stack(items).reshape(len(items), -1).astype(np.float32)
        return flat / np.float32(255) if self.preprocessing.kind == "image" else flat

    def _stack(self, items: Numbers) -> NDArray[Any]:
        return np.stack([self.read(int(item)) for item in items])


def _counts(ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """(n, length) token ids, -1 for padding -> (n, 1024) float32."""
    counts = np.zeros((len(ids), _COUNTED), np.float32)
    rows, columns = np.nonzero(ids >= 0)
    np.add.at(counts, (rows, ids[rows, columns] % _COUNTED), np.float32(1))
    return counts


def _fingerprint(items: Items, preprocessing: Preprocessing, digests: Sequence[str]) -> str:
    """SHA-256 over ids, labels, splits, roles, contents and preprocessing, and categories where there are any."""
    names = [items.class_names[label] for label in items.labels.tolist()]
    roles = zip(items.splits.tolist(), items.is_query.tolist(), items.is_gallery.tolist(), strict=True)
    total = hashlib.sha256(json.dumps(preprocessing.to_dict(), sort_keys=True).encode())
    for row in zip(items.ids, names, roles, digests, strict=True):
        total.update(json.dumps(row).encode())
    categories = [str(payload.get("category", "")) for payload in items.payloads]
    if any(categories):
        total.update(json.dumps(categories).encode())
    return total.hexdigest()


def _report(items: Items, digests: Sequence[str], skipped: Sequence[tuple[str, str]]) -> DataReport:
    members = {split: np.flatnonzero(items.splits == split) for split in SPLITS}
    classes = {split: set(items.labels[rows].tolist()) for split, rows in members.items()}
    in_train = {digests[row]: items.ids[row] for row in reversed(members["train"].tolist())}  # the first one's id stays
    twins = [(in_train[digests[row]], items.ids[row]) for row in members["test"].tolist() if digests[row] in in_train]
    return DataReport(
        images={split: len(rows) for split, rows in members.items()},
        classes={split: len(found) for split, found in classes.items()},
        shared_classes=len(classes["train"] & classes["test"]),
        num_duplicates=len(twins),
        duplicates=tuple(twins[:_EXAMPLES]),
        skipped=tuple(skipped),
    )
