"""A CSV, JSONL or Parquet table with a label in each row in; one row per image or text out.

An image is a path, or `bytes`: an encoded picture, binary in Parquet and base64 elsewhere. A text is `text`, where the
spec says so. Optional columns: split (train, validation, test), is_query, is_gallery, id (by default the path, or the
row's number). Everything else, such as sequence and category, goes into the payload, as does a text. An empty cell is
no value.
"""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raydml.data.contents import Decoded
from raydml.data.preprocessing import Preprocessing
from raydml.data.table import Table
from raydml.data.text import text_rule
from raydml.errors import DataError
from raydml.spec import ManifestData

Row = dict[str, Any]
_OURS = {"label", "split", "is_query", "is_gallery", "id"}
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def manifest_table(spec: ManifestData) -> Table:
    """The rows of the table; a path stays inside the table's folder."""
    table = Path(spec.path)
    rows = _rows(table)
    column = _content_column(spec, table, rows)
    for needed in (column, "label"):
        _require(table, rows, needed)
    contents = _CONTENTS[column](spec, table, rows)
    hidden = _OURS if column == "text" else _OURS | {column}
    if any("split" in row for row in rows):
        _require(table, rows, "split")
    return Table(
        ids=[str(row.get("id", row["path"] if column == "path" else number)) for number, row in enumerate(rows)],
        labels=[str(row["label"]) for row in rows],
        contents=contents,
        preprocessing=contents.preprocessing,
        splits=[str(row["split"]) for row in rows] if any("split" in row for row in rows) else None,
        is_query=[_truth(table, number, row, "is_query") for number, row in enumerate(rows)],
        is_gallery=[_truth(table, number, row, "is_gallery") for number, row in enumerate(rows)],
        extras=[{name: _plain(value) for name, value in row.items() if name not in hidden} for row in rows],
    )


def manifest_columns(table: Path) -> set[str]:
    """Names of the columns that hold values. DataError where the table cannot be read."""
    return {name for row in _rows(table) for name in row}


def _content_column(spec: ManifestData, table: Path, rows: list[Row]) -> str:
    """The column that holds the items: text where the spec has rules for texts, else path, else bytes."""
    if spec.text is not None:
        return "text"
    columns = {name for row in rows for name in row}
    if "text" in columns and not columns & {"path", "bytes"}:
        raise DataError(f"{table} holds texts: say how they become tokens, for example `text: {{kind: ngrams}}`")
    return "bytes" if "bytes" in columns and "path" not in columns else "path"


def _paths(spec: ManifestData, table: Path, rows: list[Row]) -> Decoded:
    paths = [_inside(table, number, str(row["path"])) for number, row in enumerate(rows)]
    return Decoded(paths, [str(path) for path in paths], Preprocessing.for_images(spec.image_size, spec.grayscale))


def _encoded(spec: ManifestData, table: Path, rows: list[Row]) -> Decoded:
    pictures = _Encoded([row["bytes"] for row in rows])
    return Decoded(pictures, _names(rows), Preprocessing.for_images(spec.image_size, spec.grayscale))


def _texts(spec: ManifestData, table: Path, rows: list[Row]) -> Decoded:
    assert spec.text is not None
    preprocessing = Preprocessing.for_texts(text_rule(spec.text), spec.text.length)
    return Decoded([row["text"] for row in rows], _names(rows), preprocessing)


def _names(rows: list[Row]) -> list[str]:
    return [f"row {number}" for number in range(len(rows))]


_CONTENTS: dict[str, Callable[[ManifestData, Path, list[Row]], Decoded]] = {
    "path": _paths,
    "bytes": _encoded,
    "text": _texts,
}


class _Encoded:
    """Encoded pictures, as bytes or as base64 text."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def __getitem__(self, number: int) -> bytes:
        value = self.values[number]
        if isinstance(value, bytes):
            return value
        try:
            return base64.b64decode(value, validate=True)
        except (ValueError, TypeError) as error:
            raise DataError(f"the column bytes is neither binary nor base64 ({error})") from error


def _rows(table: Path) -> list[Row]:
    """The rows without their empty cells."""
    if table.suffix not in READERS:
        raise DataError(
            f"{table}: a manifest is a file named {', '.join(READERS)}, not {table.suffix or 'without suffix'}"
        )
    if not table.is_file():
        raise DataError(f"{table}: no such file")
    try:
        rows = READERS[table.suffix](table)
    except (ValueError, csv.Error, OSError) as error:  # pyarrow's errors and UnicodeDecodeError are ValueErrors
        raise DataError(f"{table} cannot be read as {table.suffix[1:]}: {error}") from error
    if not rows:
        raise DataError(f"{table} has no rows")
    return [{name: value for name, value in row.items() if value is not None and value != ""} for row in rows]


def _csv(table: Path) -> list[Row]:
    with open(table, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, strict=True, restkey=""))
    for number, row in enumerate(rows):
        if row.get(""):
            raise ValueError(f"row {number} has more cells than the header")
    return [dict(row) for row in rows]


def _jsonl(table: Path) -> list[Row]:
    lines = table.read_text(encoding="utf-8").split("\n")  # other line breaks may stand in a text
    rows = [json.loads(line) for line in lines if line.strip()]
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is not an object")
    return rows


def _parquet(table: Path) -> list[Row]:
    import pyarrow.parquet

    rows: list[Row] = pyarrow.parquet.read_table(table).to_pylist()
    return rows


READERS: dict[str, Callable[[Path], list[Row]]] = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}


def _require(table: Path, rows: list[Row], column: str) -> None:
    missing = [number for number, row in enumerate(rows) if column not in row]
    if len(missing) == len(rows):
        there = ", ".join(sorted({name for row in rows for name in row}))
        raise DataError(f"{table} has no column {column!r} with values in it; its columns are: {there}")
    if missing:
        shown = ", ".join(map(str, missing[:10]))
        raise DataError(f"{table}: {len(missing)} rows have no {column}: rows {shown} (counted from 0)", rows=missing)


def _inside(table: Path, number: int, name: str) -> Path:
    """The file, by its resolved path, so that neither `..` nor a link leads out of the table's folder."""
    folder = table.parent.resolve()
    path = (folder / name).resolve()
    if Path(name).is_absolute() or not path.is_relative_to(folder):
        raise DataError(f"{table}: row {number} names {name!r}, outside of the table's folder {folder}", row=number)
    return path


def _truth(table: Path, number: int, row: Row, column: str) -> bool:
    value = str(row.get(column, True)).strip().lower()
    if value not in _TRUTH:
        raise DataError(f"{table}: row {number} has {column} = {value!r}: choose true or false", row=number)
    return _TRUTH[value]


def _plain(value: Any) -> Any:
    """The value if JSON can hold it, else its text (dates, decimals)."""
    return value if isinstance(value, str | int | float | list | dict) else str(value)
