"""A model over the items of a split -> exact retrieval metrics, embedded and measured by all workers together."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
from torch import nn

from raydml.data import Dataset
from raydml.evaluation import intervals, retrieval, summarise
from raydml.evaluation.nearest import nearest
from raydml.evaluation.results import Asked, Neighbour, Results, worst_rows
from raydml.membership import share
from raydml.models import embed_tensors
from raydml.parallel import Group
from raydml.parallel.group import talking
from raydml.spec import JobSpec

WORST, DEPTH = 100, 10  # queries of which neighbours are kept, and how many
CHUNK = 256  # items embedded at once: fixed, so that an embedding's bits do not depend on the workers


def embed_split(
    model: nn.Module, dataset: Dataset, items: np.ndarray, group: Group, dimension: int, *, in_step: bool = False
) -> np.ndarray:
    """Embeddings of these items, (len(items), dimension), on every worker; the model runs in evaluation mode.

    in_step: no worker can run the model alone, so those with fewer chunks run one of them again.
    """
    workers = group.data
    was_training = [(module, module.training) for module in model.modules()]
    model.eval()
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    shares = [share(rank, workers.size, len(chunks)) for rank in range(workers.size)]
    with talking() if in_step else nullcontext():
        parts = [embed_tensors(model, dataset.tensors(chunks[index])) for index in shares[workers.rank]]
        if in_step and chunks:
            for _ in range(max(map(len, shares)) - len(parts)):
                embed_tensors(model, dataset.tensors(chunks[0]))
    for module, training in was_training:
        module.training = training
    sizes = [[len(chunks[index]) for index in own] for own in shares]
    parameter = next(model.parameters())
    own = torch.cat(parts) if parts else torch.empty(0, dimension, dtype=parameter.dtype)
    own = own.to(workers.device) if workers.size > 1 else own
    return workers.gather_rows(own, [sum(counts) for counts in sizes]).cpu().numpy()


def measure_split(
    embeddings: np.ndarray, dataset: Dataset, items: np.ndarray, metric: str, group: Group
) -> dict[str, float]:
    """Retrieval metrics of one split's embeddings, the same bits for any number of workers."""
    return summarise(values_of_split(embeddings, dataset, items, metric, group))


def measure_test(
    embeddings: np.ndarray, dataset: Dataset, spec: JobSpec, group: Group
) -> tuple[dict[str, float], dict[str, tuple[float, float]], Results | None]:
    """Metrics of the test split, their intervals, and results by query: all that is asked for, on the first worker.

    Other workers measure their share of the queries and neither resample nor cluster.
    """
    items, asked = dataset.indices("test"), spec.evaluate
    values = values_of_split(embeddings, dataset, items, asked.metric, group)
    metrics, bounds = summarise(values), {}
    if group.rank:
        return metrics, {}, None
    labels = dataset.items.labels[items]
    if asked.bootstrap:
        classes = labels[dataset.items.is_query[items]] if asked.bootstrap_over == "classes" else None
        bounds = intervals(
            values, confidence=asked.confidence, repeats=asked.bootstrap, seed=spec.seed, classes=classes
        )
    if asked.clustering:
        from raydml.evaluation.clustering import clustering  # loads scikit-learn: a second that few runs need

        metrics |= clustering(embeddings, labels, seed=spec.seed, unit=asked.metric == "cosine")
    return metrics, bounds, results_of(embeddings, dataset, items, spec, values)


def results_of(
    embeddings: np.ndarray, dataset: Dataset, items: np.ndarray, spec: JobSpec, values: dict[str, np.ndarray]
) -> Results:
    """What each query of the test split got, with neighbours of the worst; `embeddings` and `items` are the split's."""
    table = dataset.items
    queries, gallery, place = _roles(dataset, items)
    worst = worst_rows(values, WORST)
    rows, scores = nearest(
        embeddings[queries[worst]],
        _rows(embeddings, gallery),
        place[queries[worst]],
        depth=DEPTH,
        metric=spec.evaluate.metric,
    )

    def neighbour(row: int, score: float) -> Neighbour:
        item = items[gallery[row]]
        return Neighbour(table.ids[item], table.class_names[table.labels[item]], score)

    return Results(
        asked=Asked(
            protocol=spec.evaluate.protocol,
            metric=spec.evaluate.metric,
            split="test",
            queries=dataset.digest(items[queries]),
            gallery=dataset.digest(items[gallery]),
            num_gallery=len(gallery),
            trained_on=dataset.fingerprint,
        ),
        ids=tuple(table.ids[item] for item in items[queries]),
        labels=tuple(table.class_names[label] for label in table.labels[items[queries]]),
        values=values,
        worst={
            int(query): tuple(neighbour(row, score) for row, score in zip(near, far, strict=True) if row >= 0)
            for query, near, far in zip(worst, rows.tolist(), scores.tolist(), strict=True)
        },
    )


def values_of_split(
    embeddings: np.ndarray, dataset: Dataset, items: np.ndarray, metric: str, group: Group
) -> dict[str, np.ndarray]:
    """Metrics of each query of the split, on every worker; a worker measures its share of the queries."""
    table = dataset.items
    queries, gallery, place = _roles(dataset, items)
    part = share(group.rank, group.size, len(queries))
    mine = queries[part.start : part.stop]
    values = retrieval(
        _rows(embeddings, mine),
        table.labels[items[mine]],
        _rows(embeddings, gallery),
        table.labels[items[gallery]],
        own=place[mine],
        metric=metric,  # type: ignore[arg-type]
    )
    parts = group.objects(values)
    return {name: np.concatenate([part[name] for part in parts]) for name in values}


def _roles(dataset: Dataset, items: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places among `items` of its queries and of its gallery; and the gallery row of each item, -1 without one."""
    queries = np.flatnonzero(dataset.items.is_query[items])
    gallery = np.flatnonzero(dataset.items.is_gallery[items])
    place = np.full(len(items), -1)
    place[gallery] = np.arange(len(gallery))
    return queries, gallery, place


def _rows(embeddings: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`embeddings[rows]` of ascending rows, without a copy where they follow one another."""
    together = len(rows) and rows[-1] - rows[0] + 1 == len(rows)
    chosen: np.ndarray = embeddings[rows[0] : rows[-1] + 1] if together else embeddings[rows]
    return chosen


def has_positives(dataset: Dataset, split: str) -> bool:
    """Whether some query of the split has another item of its class in the gallery: without one nothing is measured."""
    items, table = dataset.indices(split), dataset.items
    gallery = np.bincount(table.labels[items[table.is_gallery[items]]], minlength=len(table.class_names))
    queries = items[table.is_query[items]]
    return bool((gallery[table.labels[queries]] > table.is_gallery[queries]).any())
