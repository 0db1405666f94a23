"""A package of SVG drawings (`icons.json` of Iconify) in; small PNGs, one row of a table each, out."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from raydml.errors import ResourceError

SIZE = 64  # pixels on a side; a spec makes them smaller
Row = dict[str, Any]


class DrawingSet:
    """One package's drawings by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "package"
        self._set: dict[str, Any] = self.json("icons.json")
        self.names: list[str] = sorted(self._set["icons"])

    def json(self, name: str) -> Any:
        """A JSON file of the package."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    @property
    def aliases(self) -> dict[str, str]:
        """Other names of unchanged drawings."""
        entries = self._set.get("aliases", {})
        return {name: entry["parent"] for name, entry in entries.items() if set(entry) == {"parent"}}

    def svg(self, name: str) -> str:
        """The drawing as a document of its own, black where it takes the colour of its surroundings."""
        icon = self._set["icons"][name]
        left, top, width, height = (
            icon.get(key, self._set.get(key, default))
            for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="black" '
            f'width="{SIZE}" height="{SIZE}" viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
        )


def png(svg: str) -> bytes:
    """SIZE x SIZE pixels on white. ResourceError without the rasteriser, ValueError for what is no SVG."""
    try:
        import resvg_py
    except ImportError:
        raise ResourceError("resvg-py is not installed: pip install 'raydml[build]'") from None
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, background="white"))


def distinct(rows: Iterable[Row]) -> list[Row]:
    """The rows without empty drawings, and without every class that shares a drawing with another one.

    No search could tell such classes apart.
    """
    empty = png('<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>')
    rows = [row for row in rows if row["bytes"] != empty]
    classes: defaultdict[bytes, set[str]] = defaultdict(set)
    for row in rows:
        classes[row["bytes"]].add(row["label"])
    twins = {label for shared in classes.values() if len(shared) > 1 for label in shared}
    return [row for row in rows if row["label"] not in twins]


def write_table(rows: list[Row], folder: Path) -> dict[str, int]:
    """The rows as `manifest.parquet`, pictures and all: one file, where thousands would be slow to sync and to read."""
    import pyarrow
    import pyarrow.parquet

    if rows:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "manifest.parquet")
    return {"items": len(rows), "classes": len({row["label"] for row in rows})}
