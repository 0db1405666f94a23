"""Class names in; the split of each class out, the same on every machine and for any order of the names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from raydml.errors import DataError


def split_of(name: str) -> str:
    """By the first 8 hex digits of the name's SHA-256, modulo 100: below 60 train, below 70 validation, else test."""
    place = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 100
    return "train" if place < 60 else "validation" if place < 70 else "test"


def split_classes(names: Iterable[str]) -> dict[str, str]:
    """Class -> split: `split_of`, or, where that leaves a split empty or train with one class, a cut of the classes.

    The cut puts the classes in the order of their SHA-256: of C classes the first max(2, floor(0.6 C)) train, the last
    max(1, floor(0.3 C)) test, those between validate. DataError for fewer than 3 classes.
    """
    ordered = sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).digest())
    if len(ordered) < 3:
        raise DataError(
            f"{len(ordered)} classes cannot be divided into 2 for train and 1 for test: "
            f"add classes, or say which item belongs to which split"
        )
    splits = {name: split_of(name) for name in ordered}
    counts = [list(splits.values()).count(split) for split in ("train", "validation", "test")]
    if counts[0] >= 2 and counts[1] and counts[2]:
        return splits
    num_train, num_test = max(2, len(ordered) * 6 // 10), max(1, len(ordered) * 3 // 10)
    between = len(ordered) - num_train - num_test
    return dict(zip(ordered, ["train"] * num_train + ["validation"] * between + ["test"] * num_test, strict=True))
