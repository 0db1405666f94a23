"""A path in; what kind of data lies there, as the `data` of a spec, out."""

from __future__ import annotations

from pathlib import Path

from raydml.data.manifest import READERS, manifest_columns
from raydml.errors import DataError
from raydml.spec import ArraysData, DataSpec, GlyphsData, ImageFolderData, ManifestData, NgramsText

_LONGEST = 1024  # n-grams of a text, while their usual number is not known yet


def data_of(path: Path | None) -> DataSpec:
    """Class folders, a table, arrays or a folder with one of these in it; no path: the built-in glyphs.

    The path stays as it was given, for a spec starts it at the current folder. DataError says what would do.
    """
    if path is None:
        return GlyphsData()
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.suffix == ".npz" or (path / "inputs.npy").is_file():
        return ArraysData(path=str(path))
    if path.is_file():
        return _manifest(path)
    tables = sorted(entry for entry in path.iterdir() if entry.is_file() and entry.suffix in READERS)
    if tables:
        return _manifest(_only(path, tables))
    return ImageFolderData(path=str(path))


def _only(folder: Path, tables: list[Path]) -> Path:
    if len(tables) > 1:
        names = ", ".join(table.name for table in tables)
        raise DataError(f"{folder} holds {len(tables)} tables ({names}): name the one that you mean")
    return tables[0]


def _manifest(table: Path) -> ManifestData:
    columns = manifest_columns(table)
    if "label" not in columns or not columns & {"path", "bytes", "text"}:
        raise DataError(
            f"{table} has the columns {', '.join(sorted(columns))}: a manifest has label, and path, bytes or text"
        )
    texts = not columns & {"path", "bytes"}
    return ManifestData(path=str(table), text=NgramsText(length=_LONGEST) if texts else None)
