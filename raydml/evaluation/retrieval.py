"""Embeddings and labels of queries and a gallery -> exact retrieval metrics, one value a query.

Ranks are by score descending, ties by gallery row ascending; labels are compared as int64.
"""

from __future__ import annotations

import numpy as np

from raydml.errors import DataError
from raydml.evaluation.checks import check_labels, check_own
from raydml.evaluation.positives import Classes
from raydml.evaluation.ranks import BLOCK, MOST_PAIRS, Block, Task, panels, rank
from raydml.evaluation.scores import Array, Metric, Scorer, check_metric

_COORDINATES = 12  # of the gallery, for each positive that is held: together they take about as much memory


def retrieval(
    queries: Array,
    query_labels: Array,
    gallery: Array,
    gallery_labels: Array,
    *,
    own: Array | None,
    metric: Metric = "cosine",
    recall_at: tuple[int, ...] = (1, 10, 100),
) -> dict[str, Array]:
    """Metrics of each query: float64 (nq,) by name, NaN for a query without a positive in the gallery.

    `queries` (nq, d) and `gallery` (ng, d) are finite numbers, labels are integers. `own[i]` is the gallery row that
    is query i itself and does not count, or -1; None: no query is in the gallery. With R the number of positives:

    - precision_at_1: 1 if the first rank is a positive
    - r_precision: positives among the first R ranks / R
    - map_at_r: 1/R sum over i <= R of [rank i is positive] x (positives among the first i) / i
      (Musgrave, Belongie and Lim, A Metric Learning Reality Check, ECCV 2020)
    - recall_at_K: 1 if there is a positive among the first K ranks

    A query's values do not depend on the other queries, so workers that split the queries get together what one gets
    alone, bit for bit. Where every query has the numbers of a gallery row of its own, each pair of queries is scored
    once for both. Memory beyond the inputs is a few numbers a row, the positives of about a million pairs (if scores
    serve both, of at most so many as take the room of the gallery), and those of a single query. A zero vector has
    cosine 0 with everything. DataError for rows that are not finite, an empty gallery or wrong shapes.
    """
    if queries.ndim == gallery.ndim == 2 and queries.shape[1] != gallery.shape[1]:
        raise DataError(f"queries have dimension {queries.shape[1]}, the gallery {gallery.shape[1]}: they must agree")
    check_metric(metric)
    if len(gallery) == 0:
        raise DataError("the gallery is empty: there is nothing to rank")
    if any(depth < 1 for depth in recall_at):
        raise DataError(f"recall_at = {recall_at}: every rank must be at least 1")
    query_labels = check_labels("query_labels", query_labels, len(queries))
    gallery_labels = check_labels("gallery_labels", gallery_labels, len(gallery))
    own = check_own(own, query_labels, gallery_labels)
    scorer = Scorer.of(queries, gallery, metric)
    classes = Classes.of(gallery_labels)
    task = Task(scorer, classes, query_labels, gallery_labels, own, max(recall_at, default=1))
    num_positives = classes.sizes(query_labels) - (own >= 0)
    values = {name: np.full(len(queries), np.nan) for name in _names(recall_at)}
    order = np.argsort(query_labels, kind="stable")  # queries of one class share their positives' scores
    order = order[num_positives[order] > 0]
    shared = _shared(queries, gallery, own, order)
    for panel in panels(num_positives[order], max(MOST_PAIRS, gallery.size // _COORDINATES) if shared else 0):
        total = num_positives[order[panel[0].start : panel[-1].stop]]
        kind = scorer.rough_type(float(total.mean()))
        blocks = [Block.of(task, order[here], kind) for here in panel]
        rank(task, blocks, shared)
        for block in blocks:
            for name, value in _measure(block, num_positives[block.queries], recall_at).items():
                values[name][block.queries] = value
    return values


def summarise(values: dict[str, Array]) -> dict[str, float]:
    """Means over the queries that have a positive, with the counts `queries` and `queries_without_positive`.

    `queries` counts all of them. DataError when no query has a positive, as a mean of nothing is not a number.
    """
    first = next(iter(values.values()))
    counted = ~np.isnan(first)
    if not counted.any():
        raise DataError(
            f"none of {len(first)} queries has a positive in the gallery: every class there has one item, or another "
            f"split was searched",
            queries=len(first),
        )
    means = {name: float(value[counted].mean()) for name, value in values.items()}
    return {**means, "queries": float(len(first)), "queries_without_positive": float((~counted).sum())}


def _names(recall_at: tuple[int, ...]) -> list[str]:
    return ["precision_at_1", "r_precision", "map_at_r", *(f"recall_at_{depth}" for depth in recall_at)]


def _shared(queries: Array, gallery: Array, own: Array, order: Array) -> bool:
    """Whether each query of `order` has the numbers of its gallery row, `own`, and no two have the same row."""
    rows = own[order]
    if rows.min(initial=0) < 0 or len(np.unique(rows)) < len(rows):
        return False
    starts = range(0, len(rows), BLOCK)
    return all(np.array_equal(queries[order[s : s + BLOCK]], gallery[rows[s : s + BLOCK]]) for s in starts)


def _measure(block: Block, total: Array, recall_at: tuple[int, ...]) -> dict[str, Array]:
    """Metrics of each query of a block from the ranks of its positives, of which it has `total` (b,)."""
    ranks, places = block.ranks, block.positives.queries
    within = ranks <= total[places]
    queries = places[within]
    # bincount adds in the order of rank, so that a query's value does not depend on its neighbours.
    precisions = np.bincount(queries, (block.positives.place[within] + 1) / ranks[within], minlength=len(total))
    first = ranks[block.positives.starts]
    recalls = {f"recall_at_{depth}": (first <= depth).astype(np.float64) for depth in recall_at}
    return {
        "precision_at_1": (first == 1).astype(np.float64),
        "r_precision": np.bincount(queries, minlength=len(total)) / total,
        "map_at_r": precisions / total,
        **recalls,
    }
