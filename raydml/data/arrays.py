"""Arrays in one .npz, or in .npy files in a folder, in; one row per entry out.

inputs: (N, H, W) or (N, H, W, C) uint8 pictures, or (N, D) floats. labels: (N,) whole numbers or text.
splits, ids: (N,) text, optional.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydml.data.contents import Stored
from raydml.data.preprocessing import Preprocessing
from raydml.data.table import Table
from raydml.errors import DataError
from raydml.spec import ArraysData

_NAMES = ("inputs", "labels", "splits", "ids")


def arrays_table(spec: ArraysData) -> Table:
    """The arrays as rows; pictures of another size or number of channels are converted."""
    path = Path(spec.path)
    arrays = read_arrays(path)
    for name in ("inputs", "labels"):
        if name not in arrays:
            raise DataError(f"{path} has no array {name!r}; its arrays are: {', '.join(arrays) or 'none'}")
    inputs = arrays["inputs"]
    for name, array in arrays.items():
        if name != "inputs" and array.shape != (len(inputs),):
            raise DataError(f"{path}: {name} has shape {array.shape}, but inputs has {len(inputs)} rows")
    if arrays["labels"].dtype.kind not in "iuU":
        raise DataError(f"{path}: labels are {arrays['labels'].dtype}, not whole numbers or text")
    stored, preprocessing = _inputs(path, inputs, spec)
    return Table(
        ids=[str(name) for name in arrays.get("ids", np.arange(len(inputs))).tolist()],
        labels=[str(label) for label in arrays["labels"].tolist()],
        contents=Stored(stored),
        preprocessing=preprocessing,
        splits=[str(split) for split in arrays["splits"].tolist()] if "splits" in arrays else None,
    )


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Those of the four arrays that are there. DataError where the file or folder cannot be read."""
    try:
        if path.is_dir():
            files = {name: path / f"{name}.npy" for name in _NAMES}
            return {name: np.load(file, allow_pickle=False) for name, file in files.items() if file.is_file()}
        # opened here, since np.load leaves a file that is no archive open
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in _NAMES if name in archive}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise DataError(f"{path} cannot be read as .npz, or as a folder of .npy files: {reason}") from error


def _inputs(path: Path, inputs: NDArray[Any], spec: ArraysData) -> tuple[NDArray[Any], Preprocessing]:
    pictures = inputs.dtype == np.uint8 and (inputs.ndim == 3 or (inputs.ndim == 4 and inputs.shape[3] in (1, 3, 4)))
    if pictures:
        preprocessing = Preprocessing.for_images(spec.image_size, spec.grayscale)
        wanted = (spec.image_size, spec.image_size, preprocessing.channels)
        if inputs.shape[1:] == wanted or not len(inputs):
            return inputs, preprocessing
        return np.stack([preprocessing.decode(picture) for picture in inputs]), preprocessing
    if inputs.dtype.kind == "f" and inputs.ndim == 2:
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which the check refuses
            return inputs.astype(np.float32), Preprocessing("vector", inputs.shape[1:])
    raise DataError(
        f"{path}: inputs are {inputs.dtype} of shape {inputs.shape}; expected uint8 (N, H, W) or (N, H, W, C) pictures "
        f"with C = 1, 3 or 4, or floats (N, D)"
    )
