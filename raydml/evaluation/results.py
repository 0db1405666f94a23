"""What each query of an evaluation got -> one Parquet file, and back: its metrics, and neighbours of the worst ones."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from raydml.errors import DataError
from raydml.evaluation.scores import Array
from raydml.files import write_bytes

VERSION = 1
_KEY = b"raydml.evaluation"
_BESIDE = ("id", "label", "neighbours")  # columns that are no metric


@dataclass(frozen=True)
class Asked:
    """What was asked of a model: results to equal questions can be compared, query by query.

    `queries` and `gallery` are SHA-256 over ids, classes and contents. `model` is that of the weights, `trained_on` the
    fingerprint of the data set: these may differ.
    """

    protocol: str
    metric: str
    split: str
    queries: str
    gallery: str
    num_gallery: int
    model: str | None = None
    trained_on: str | None = None


@dataclass(frozen=True)
class Neighbour:
    """A gallery item near a query; its score is the cosine, or minus the distance."""

    id: str
    label: str
    score: float


@dataclass(frozen=True, eq=False)
class Results:
    """One value a query by metric, float64 (nq,), NaN for a query without a positive.

    `worst` has neighbours, nearest first, of some rows.
    """

    asked: Asked
    ids: tuple[str, ...]
    labels: tuple[str, ...]  # names of the queries' classes
    values: dict[str, Array]
    worst: dict[int, tuple[Neighbour, ...]]

    @property
    def classes(self) -> Array:
        """The queries' classes as numbers, int64 (nq,)."""
        return np.asarray(np.unique(self.labels, return_inverse=True)[1])


def worst_rows(values: dict[str, Array], number: int) -> Array:
    """Rows of the queries with the lowest MAP@R, and of equal ones the first; none without a positive."""
    score = values["map_at_r"]
    order = np.argsort(np.where(np.isnan(score), np.inf, score), kind="stable")
    return np.asarray(order[: min(number, int((~np.isnan(score)).sum()))])


def path_of(folder: Path, metric: str) -> Path:
    """Where a run's results by a metric lie."""
    return folder / "evaluation" / f"{metric}.parquet"


def write_results(folder: Path, results: Results, *, model: str | None) -> None:
    """Into a run's folder, whole or not at all; `model` is the SHA-256 of the weights that were measured.

    ResourceError where the disk refuses.
    """
    import pyarrow
    import pyarrow.parquet

    neighbours = [
        [asdict(one) for one in results.worst[row]] if row in results.worst else None for row in range(len(results.ids))
    ]
    kind = pyarrow.struct([("id", pyarrow.string()), ("label", pyarrow.string()), ("score", pyarrow.float64())])
    columns = {
        "id": pyarrow.array(results.ids, pyarrow.string()),
        "label": pyarrow.array(results.labels, pyarrow.string()).dictionary_encode(),
        **{name: pyarrow.array(value, pyarrow.float64()) for name, value in results.values.items()},
        "neighbours": pyarrow.array(neighbours, pyarrow.list_(kind)),
    }
    header = json.dumps({"version": VERSION, **asdict(results.asked), "model": model})
    table = pyarrow.table(columns).replace_schema_metadata({_KEY: header.encode()})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    write_bytes(path_of(folder, results.asked.metric), buffer.getvalue())


def read_results(folder: Path, metric: str) -> Results:
    """What `write_results` wrote. DataError where it is another file, or damaged."""
    import pyarrow
    import pyarrow.parquet

    path = path_of(folder, metric)
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read ({error}): measure the run again, raydml evaluate RUN") from error
    header = json.loads((table.schema.metadata or {}).get(_KEY, b"{}"))
    if header.pop("version", None) != VERSION:
        raise DataError(
            f"{path} does not hold results of version {VERSION}: measure the run again, raydml evaluate RUN"
        )
    neighbours = table["neighbours"].to_pylist()
    return Results(
        asked=Asked(**header),
        ids=tuple(table["id"].to_pylist()),
        labels=tuple(table["label"].to_pylist()),
        values={name: table[name].to_numpy() for name in table.column_names if name not in _BESIDE},
        worst={
            row: tuple(Neighbour(**one) for one in found) for row, found in enumerate(neighbours) if found is not None
        },
    )
