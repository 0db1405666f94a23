"""A study's result in; a Parquet file with a row for every trial out."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydml.files import write_bytes
from raydml.tuning.result import Row, StudyResult
from raydml.tuning.significance import comparison


def write_table(result: StudyResult, path: Path) -> None:
    """One row per configuration and seed: values as JSON, and each field of the space in a column `field:NAME`.

    `verdict`, `p_value` and the ends of the 95 % intervals `mean_*` and `difference_*` are of the configuration.
    """
    names = sorted({name for row in result.rows for name in row.values})
    rows = [
        {
            "configuration": row.configuration,
            "seed": seed,
            "state": row.state,
            "step": row.step,
            "score": row.by_seed.get(seed),
            "mean_score": row.score,
            **_compared(result, row),
            "seconds": row.seconds,
            "bytes": row.bytes,
            "on_front": row.on_front,
            "values": json.dumps(row.values, sort_keys=True),
            **{f"field:{name}": json.dumps(row.values[name]) if name in row.values else None for name in names},
        }
        for row in result.rows
        for seed in row.by_seed or (result.spec.seed,)
    ]
    stream = BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    write_bytes(path, stream.getvalue())


def _compared(result: StudyResult, row: Row) -> dict[str, Any]:
    """How the row's configuration compares with the best, an interval being a column for each end."""
    found = comparison(result.standings.get(row.configuration))
    ends = {"mean": found.pop("interval"), "difference": found.pop("difference_interval")}
    lowest = {f"{name}_low": interval[0] if interval else None for name, interval in ends.items()}
    return found | lowest | {f"{name}_high": interval[1] if interval else None for name, interval in ends.items()}
