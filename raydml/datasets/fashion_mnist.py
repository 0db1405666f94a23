"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): ten kinds of clothes, the same classes in every split."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydml.datasets.recipe import Counts, Recipe, Source
from raydml.errors import DataError

PACKAGE = "dataset-fashion-mnist"
CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_VALIDATION = 12  # one part in so many of the training pictures, the last ones, validates


def make(folders: Mapping[str, Path], target: Path) -> Counts:
    """Arrays as the kind `arrays` reads them; the last twelfth of the training pictures validates."""
    folder = folders[PACKAGE] / "usr" / "share" / "datasets" / "fashion-mnist"
    parts = [(_idx(folder, f"{name}-images-idx3"), _idx(folder, f"{name}-labels-idx1")) for name in ("train", "t10k")]
    for images, labels in parts:
        if len(images) != len(labels):
            raise DataError(f"{PACKAGE}: {len(images)} pictures stand beside {len(labels)} labels")
    inputs, labels = (np.concatenate(halves) for halves in zip(*parts, strict=True))
    (train, _), (test, _) = parts
    num_validation = len(train) // _VALIDATION
    splits = ["train"] * (len(train) - num_validation) + ["validation"] * num_validation + ["test"] * len(test)
    np.save(target / "inputs.npy", inputs)
    np.save(target / "labels.npy", np.array(CLASSES)[labels])
    np.save(target / "splits.npy", np.array(splits))
    return {
        "items": len(inputs),
        "classes": len(np.unique(labels)),
        **{name: splits.count(name) for name in set(splits)},
    }


def _idx(folder: Path, name: str) -> NDArray[Any]:
    """An IDX file of bytes: 4 bytes 0, 0, 8 and the number of axes, each axis as 4 big-endian bytes, the values."""
    content = gzip.decompress((folder / f"{name}-ubyte.gz").read_bytes())
    if content[:3] != bytes([0, 0, 8]):
        raise DataError(f"{PACKAGE}: {name} is no IDX file of bytes")
    axes = content[3]
    shape = np.frombuffer(content, ">u4", axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


RECIPE = Recipe(
    "Fashion-MNIST: 28 x 28 grey pictures of ten kinds of clothes",
    (Source("apt", PACKAGE),),
    make,
    "data: {{kind: arrays, path: {folder}, image_size: 28, grayscale: true}}",
)
