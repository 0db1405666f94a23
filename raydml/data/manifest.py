"""A CSV, JSONL or Parquet table with the columns path and label in; one row per image out.

Optional columns: split (train, validation, test), is_query, is_gallery, id (by default the path). Everything else, such
as sequence and category, goes into the payload. An empty cell is no value.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raydml.data.contents import Decoded
from raydml.data.preprocessing import Preprocessing
from raydml.data.table import Table
from raydml.errors import DataError
from raydml.spec import ManifestData

Row = dict[str, Any]
_OURS = {"path", "label", "split", "is_query", "is_gallery", "id"}
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def manifest_table(spec: ManifestData) -> Table:
    """The rows of the table, each with a path that stays inside the table's folder."""
    table = Path(spec.path)
    rows = _rows(table)
    for column in ("path", "label"):
        _require(table, rows, column)
    paths = [_inside(table, number, str(row["path"])) for number, row in enumerate(rows)]
    preprocessing = Preprocessing.for_images(spec.image_size, spec.grayscale)
    if any("split" in row for row in rows):
        _require(table, rows, "split")
    return Table(
        ids=[str(row.get("id", row["path"])) for row in rows],
        labels=[str(row["label"]) for row in rows],
        contents=Decoded(paths, [str(path) for path in paths], preprocessing),
        preprocessing=preprocessing,
        splits=[str(row["split"]) for row in rows] if any("split" in row for row in rows) else None,
        is_query=[_truth(table, number, row, "is_query") for number, row in enumerate(rows)],
        is_gallery=[_truth(table, number, row, "is_gallery") for number, row in enumerate(rows)],
        extras=[{name: _plain(value) for name, value in row.items() if name not in _OURS} for row in rows],
    )


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
    lines = table.read_text(encoding="utf-8").splitlines()
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
