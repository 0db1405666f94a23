"""A torch map-style Dataset of (input, label) in; one row per entry out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from raydml.data.contents import Decoded
from raydml.data.preprocessing import Preprocessing
from raydml.data.table import Table
from raydml.errors import DataError, SpecError


def custom_table(custom: object | None) -> Table:
    """An entry's input is a PIL image, a uint8 (H, W[, C]) array, or a float tensor or array of any fixed shape.

    Labels are `.labels` or `.targets`, or else found by reading every entry; splits are `.splits`, if there. The first
    entry fixes the size: its longer side for pictures, all of which are resized to that square. Entries must not be
    random, as they may be read more than once.
    """
    if custom is None:
        raise SpecError("data.kind is custom, but no dataset was handed over: call raydml.train(spec, dataset=...)")
    if not hasattr(custom, "__getitem__") or not hasattr(custom, "__len__"):
        raise SpecError(f"a {type(custom).__name__} has no length or cannot be indexed: hand over a map-style Dataset")
    size = len(custom)
    if not size:
        raise DataError("the dataset handed over is empty")
    inputs = _Inputs(custom)
    preprocessing = _preprocessing(inputs[0])
    splits = _column(custom, ("splits",), size)
    return Table(
        ids=[str(number) for number in range(size)],
        labels=_column(custom, ("labels", "targets"), size) or [_text(custom[number][1]) for number in range(size)],
        contents=Decoded(inputs, [f"item {number}" for number in range(size)], preprocessing, threads=1),
        preprocessing=preprocessing,
        splits=splits,
    )


class _Inputs:
    """The inputs of a Dataset's entries, tensors as arrays."""

    def __init__(self, custom: Any) -> None:
        self.custom = custom

    def __getitem__(self, number: int) -> Image.Image | NDArray[Any]:
        value = self.custom[number][0]
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().numpy()
        if not isinstance(value, Image.Image | np.ndarray):
            raise DataError(f"item {number} is a {type(value).__name__}, not a PIL image, array or tensor")
        return value


def _preprocessing(first: Image.Image | NDArray[Any]) -> Preprocessing:
    if isinstance(first, Image.Image):
        return Preprocessing.for_images(max(first.size), first.mode in ("1", "L", "I;16", "I"))
    if first.dtype.kind == "f":
        return Preprocessing("vector", first.shape)
    if first.dtype == np.uint8 and (first.ndim == 2 or (first.ndim == 3 and first.shape[2] in (1, 3, 4))):
        return Preprocessing.for_images(max(first.shape[:2]), first.ndim == 2 or first.shape[2] == 1)
    raise DataError(
        f"item 0 is {first.dtype} of shape {first.shape}; expected floats, or uint8 (H, W) or (H, W, C) with "
        f"C = 1, 3 or 4"
    )


def _column(custom: object, names: tuple[str, ...], size: int) -> list[str] | None:
    for name in names:
        values = getattr(custom, name, None)
        if values is not None:
            texts = [_text(value) for value in values]
            if len(texts) != size:
                raise DataError(f"the dataset's {name} has {len(texts)} entries, but the dataset has {size}")
            return texts
    return None


def _text(value: Any) -> str:
    return str(value.item() if isinstance(value, torch.Tensor | np.generic) else value)
