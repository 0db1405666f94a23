"""Phosphor icons: an icon is a class, its six weights are the instances."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from raydml.datasets.drawings import DrawingSet, Row, distinct, png, write_table
from raydml.datasets.recipe import Counts, Recipe, Source

PACKAGE = "@iconify-json/ph"
STYLES = ("regular", "thin", "light", "bold", "fill", "duotone")


def make(folders: Mapping[str, Path], target: Path) -> Counts:
    """Every icon that is drawn in all six styles."""
    return write_table(distinct(_rows(DrawingSet(folders[PACKAGE]))), target)


def _rows(drawings: DrawingSet) -> Iterator[Row]:
    there = set(drawings.names)
    for name in drawings.names:
        drawn = {style: name if style == "regular" else f"{name}-{style}" for style in STYLES}
        if there.issuperset(drawn.values()):
            for style, drawing in drawn.items():
                yield {"id": f"{name}/{style}", "label": name, "style": style, "bytes": png(drawings.svg(drawing))}


RECIPE = Recipe(
    "Phosphor icons: 64 x 64 pictures, an icon a class, six styles each",
    (Source("npm", PACKAGE, "1.2.2"),),
    make,
    "data: {{kind: manifest, path: {folder}/manifest.parquet, image_size: 32, grayscale: true}}",
)
