"""A DataSpec in; the dataset and what its items looked like before they were made alike out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from raydml.data.arrays import read_arrays
from raydml.data.contents import Decoded
from raydml.data.dataset import Dataset
from raydml.data.preprocessing import open_image
from raydml.data.sources import read_table
from raydml.data.table import Table, checked_dataset
from raydml.errors import DataError
from raydml.spec import ArraysData, DataSpec

_SAMPLES = 200  # pictures looked at, evenly over all
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


@dataclass(frozen=True, eq=False)
class Survey:
    """The good items as a dataset; of pictures their sizes and colours, of texts their numbers of tokens."""

    dataset: Dataset
    num_items: int  # bad ones among them
    sides: tuple[int, ...]  # longer side of each picture looked at, pixels; empty for other data
    grey: bool  # no picture looked at has colour
    lengths: tuple[int, ...]  # tokens of each text, as far as the spec keeps them


def survey(spec: DataSpec, home: Path) -> Survey:
    """Read all items once; bad ones are left out. DataError where the data cannot be read at all."""
    table = read_table(spec, home, None)
    pictures = list(_pictures(spec, table)) if table.preprocessing.kind == "image" else []
    dataset = checked_dataset(table, skip=True)
    texts = dataset.indices("all").tolist() if table.preprocessing.kind == "tokens" else []
    return Survey(
        dataset,
        len(table.ids),
        tuple(max(picture.size) for picture in pictures),
        all(_is_grey(picture) for picture in pictures),
        tuple(int((dataset.read(item) >= 0).sum()) for item in texts),
    )


def _pictures(spec: DataSpec, table: Table) -> Iterator[Image.Image]:
    """Some of the pictures as they are; those that cannot be decoded are left out."""
    chosen = np.unique(np.linspace(0, len(table.ids) - 1, min(_SAMPLES, len(table.ids))).astype(int)).tolist()
    if isinstance(spec, ArraysData):
        inputs = read_arrays(Path(spec.path))["inputs"]
        yield from (open_image(inputs[number]) for number in chosen)
    elif isinstance(table.contents, Decoded):
        for number in chosen:
            try:
                picture = open_image(table.contents.sources[number])
                picture.load()
            except (DataError, OSError, ValueError, SyntaxError, *_BOMBS):  # counted when everything is read
                continue
            yield picture


def _is_grey(picture: Image.Image) -> bool:
    if picture.mode in ("1", "L", "LA", "I", "I;16"):
        return True
    red, green, blue = (np.asarray(band) for band in picture.convert("RGB").split())
    return bool((red == green).all() and (green == blue).all())
