"""The test split's embeddings -> `views/` in the run's folder: JSON documents and small pictures that a page draws.

`items.json` numbers the items that the others name; `queries.json` has queries with their neighbours, the worst first;
`scores.json` the scores of pairs; `map.json` items on a plane; `pictures-N.webp` sheets of the first items' pictures.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from raydml.data import Dataset
from raydml.evaluation.nearest import nearest
from raydml.evaluation.results import worst_rows
from raydml.evaluation.scores import Array
from raydml.evaluation.views import PairScores, evenly, merged, pair_scores, projection
from raydml.files import whole_folder, write_bytes
from raydml.spec import JobSpec

WORST = 200  # queries, however the others do
QUERIES = 5000  # that are shown besides, evenly spaced
COMPARED = 1500  # whose scores with the whole gallery are counted, evenly spaced
SCORES = 10**8  # of these queries and the gallery, at most
NEIGHBOURS = 12
POINTS = 2000  # of the map
SIDE = 64  # pixels of a picture, at most
COLUMNS = 32  # pictures in a row of a sheet; as many rows
PIXELS = 1 << 24  # of all pictures: 16384 of 32 x 32, 4096 of 64 x 64
RATES = (0.1, 0.01, 0.001, 0.0001)
_ORDERED_BY = "map_at_r"


def write_views(folder: Path, embeddings: Array, values: dict[str, Array], dataset: Dataset, spec: JobSpec) -> None:
    """Write `folder` whole, in place of an earlier one.

    embeddings (n, d) are of the items `dataset.indices("test")`, `values` (nq,) by name of the queries among them.
    """
    items, table, metric = dataset.indices("test"), dataset.items, spec.evaluate.metric
    queries, gallery = np.flatnonzero(table.is_query[items]), np.flatnonzero(table.is_gallery[items])
    labels = table.labels[items]
    place = np.full(len(items), -1)
    place[gallery] = np.arange(len(gallery))

    bound = max(1, SCORES // len(gallery))
    even = evenly(len(queries), min(QUERIES, bound))
    kept = np.array(merged(worst_rows(values, WORST).tolist(), even.tolist()), np.int64)
    kept = kept[np.argsort(values[_ORDERED_BY][kept], kind="stable")]
    asked = queries[kept]
    near, near_scores = nearest(embeddings[asked], embeddings[gallery], place[asked], depth=NEIGHBOURS, metric=metric)
    rows = np.where(near >= 0, gallery[near], -1)  # of the split
    compared = queries[evenly(len(queries), min(COMPARED, bound))]
    scores = pair_scores(
        embeddings[compared], labels[compared], embeddings[gallery], labels[gallery], place[compared], metric
    )
    points = evenly(len(items), POINTS)
    flat, shares = projection(embeddings[points])

    shown = [row for query, found in zip(asked, rows, strict=True) for row in (query, *found) if row >= 0]
    side = min(SIDE, dataset.preprocessing.image_size) if dataset.preprocessing.kind == "image" else 0
    most = PIXELS // side**2 if side else 0
    order = np.array(merged(merged(shown, points.tolist()), range(min(len(items), most))), np.int64)
    number = np.full(len(items), -1)
    number[order] = np.arange(len(order))
    with whole_folder(folder) as draft:
        sheets = _write_pictures(draft, items[order[:most]], dataset, side)
        _write(draft / "items.json", _items(items[order], dataset) | sheets)
        _write(draft / "scores.json", _scores(scores, metric, len(compared), len(queries)))
        _write(
            draft / "queries.json",
            {
                "metric": metric,
                "of": len(queries),
                "ordered_by": _ORDERED_BY,
                "items": number[asked].tolist(),
                "values": {name: _rounded(value[kept]) for name, value in values.items()},
                "neighbours": [[int(number[row]) for row in found if row >= 0] for found in rows],
                "scores": [_rounded(found[~np.isnan(found)]) for found in near_scores],
            },
        )
        _write(
            draft / "map.json",
            {
                "of": len(items),
                "variance": _rounded(shares),
                "items": number[points].tolist(),
                "x": _rounded(flat[:, 0]),
                "y": _rounded(flat[:, 1]),
            },
        )


def _write(path: Path, document: dict[str, Any]) -> None:
    write_bytes(path, json.dumps(document, separators=(",", ":")).encode())


def _items(items: Array, dataset: Dataset) -> dict[str, Any]:
    """Ids and class names, and texts where items are texts."""
    table = dataset.items
    texts = [table.payloads[item].get("text") for item in items] if dataset.preprocessing.kind == "tokens" else []
    return {
        "ids": [table.ids[item] for item in items],
        "labels": [table.class_names[table.labels[item]] for item in items],
        "texts": texts if any(texts) else None,
    }


def _scores(scores: PairScores, metric: str, compared: int, queries: int) -> dict[str, Any]:
    """Histograms, and the share of positive pairs accepted at rates of false ones."""
    edges, positive, negative = scores.drawn()
    rates = [(rate, scores.tar_at_far(rate)) for rate in RATES]
    curve = [(rate, scores.tar_at_far(rate)) for rate in np.logspace(-5, 0, 41).tolist()]
    return {
        "metric": metric,
        "queries": compared,
        "of": queries,
        "edges": _rounded(edges),
        "positive": positive.tolist(),
        "negative": negative.tolist(),
        "tar_at_far": [{"far": far, "tar": at[0], "threshold": at[1]} for far, at in rates if at],
        "curve": {"far": [far for far, at in curve if at], "tar": _rounded(np.array([at[0] for _, at in curve if at]))},
    }


def _write_pictures(folder: Path, items: Array, dataset: Dataset, side: int) -> dict[str, int]:
    """Sheets of COLUMNS x COLUMNS pictures of side x side pixels, row by row; what says where each is."""
    size = COLUMNS**2
    sheets = [items[start : start + size] for start in range(0, len(items), size)]
    for number, members in enumerate(sheets):
        sheet = Image.new("RGB", (COLUMNS * side, -(-len(members) // COLUMNS) * side))
        for place, item in enumerate(members):
            picture = Image.fromarray(np.squeeze(dataset.read(int(item)))).convert("RGB")
            if picture.size != (side, side):
                picture = picture.resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(picture, (place % COLUMNS * side, place // COLUMNS * side))
        sheet.save(folder / f"pictures-{number}.webp", quality=90, method=2)
    return {"pictures": len(items), "side": side, "columns": COLUMNS}


def _rounded(values: Array) -> list[float | None]:
    """Five digits; None for NaN, which JSON cannot say."""
    return [None if np.isnan(value) else round(float(value), 5) for value in values]
