"""A DataSpec in; the dataset that it names, read once and proved whole, out."""

from __future__ import annotations

from pathlib import Path

from raydml.data.arrays import arrays_table
from raydml.data.custom import custom_table
from raydml.data.dataset import Dataset
from raydml.data.folds import folded
from raydml.data.glyphs import glyphs_table
from raydml.data.image_folder import image_folder_table
from raydml.data.manifest import manifest_table
from raydml.data.table import Table, checked_dataset
from raydml.errors import SpecError
from raydml.spec import ArraysData, AugmentSpec, CustomData, DataSpec, GlyphsData, ImageFolderData, ManifestData


def open_dataset(spec: DataSpec, home: Path, *, custom: object | None = None) -> Dataset:
    """Read the data that `spec` names; `home` is the folder for what is built once, `custom` a torch map-style Dataset.

    Every item is read here, so that bad ones are refused or left out (`on_bad_item`) before the plan is made.
    DataError when the data is wrong, SpecError when the spec does not fit it.
    """
    if custom is not None and not isinstance(spec, CustomData):
        raise SpecError(f"a dataset was handed over, but data.kind is {spec.kind}: set it to custom")
    table = read_table(spec, Path(home), custom)
    on_pictures = AugmentSpec(noise=spec.augment.noise) != spec.augment
    if table.preprocessing.kind == "tokens" and spec.augment != AugmentSpec():
        raise SpecError("data.augment changes pictures and vectors, and these items are texts: leave it out")
    if table.preprocessing.kind == "vector" and on_pictures:
        raise SpecError("inputs that are vectors or float tensors can be augmented by noise alone")
    dataset = checked_dataset(table, skip=spec.on_bad_item == "skip")
    return dataset if spec.fold is None else folded(dataset, spec.fold)


def read_table(spec: DataSpec, home: Path, custom: object | None) -> Table:
    """The rows that the data names, nothing of them decoded yet."""
    match spec:
        case GlyphsData():
            return glyphs_table(spec, home)
        case ImageFolderData():
            return image_folder_table(spec)
        case ManifestData():
            return manifest_table(spec)
        case ArraysData():
            return arrays_table(spec)
        case CustomData():
            return custom_table(custom)
