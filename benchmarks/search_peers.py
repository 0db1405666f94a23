"""Other libraries as contenders of `search.py`: vectors in; for each effort, a search: queries (n, d) -> ids (n, K)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

K = 10
EFFORTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)
Array = np.ndarray[Any, Any]
Search = Callable[[Array], Array]


def hnswlib_index(vectors: Array) -> Iterator[tuple[int, Search]]:
    import hnswlib

    index = hnswlib.Index("ip", vectors.shape[1])
    index.init_index(len(vectors), ef_construction=80, M=16)
    index.add_items(vectors, num_threads=1)
    for effort in EFFORTS:
        index.set_ef(max(K, 2 * effort))
        yield effort, lambda queries: index.knn_query(queries, K, num_threads=1)[0]


def usearch_index(vectors: Array) -> Iterator[tuple[int, Search]]:
    from usearch.index import Index

    index = Index(ndim=vectors.shape[1], metric="ip", dtype="f32", connectivity=16, expansion_add=80)
    index.add(np.arange(len(vectors)), vectors, threads=1)
    for effort in EFFORTS:
        index.expansion_search = max(K, 2 * effort)
        yield effort, lambda queries: np.atleast_2d(index.search(queries, K, threads=1).keys)


def scann_index(vectors: Array) -> Iterator[tuple[int, Search]]:
    import scann

    builder = scann.scann_ops_pybind.builder(vectors, K, "dot_product")
    tree = builder.tree(num_leaves=1000, num_leaves_to_search=1, training_sample_size=len(vectors))
    searcher = tree.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100).build()
    for effort in EFFORTS:
        yield effort, lambda queries, effort=effort: searcher.search_batched(queries, leaves_to_search=effort)[0]


def chroma_collection(vectors: Array) -> Iterator[tuple[int, Search]]:
    import chromadb

    graph = {"space": "ip", "ef_construction": 80, "max_neighbors": 16, "ef_search": 64, "num_threads": 1}
    collection = chromadb.EphemeralClient().create_collection("points", configuration={"hnsw": graph})
    for start in range(0, len(vectors), 5000):
        part = vectors[start : start + 5000]
        collection.add([str(start + row) for row in range(len(part))], part)

    def search(queries: Array) -> Array:
        found = collection.query(query_embeddings=queries, n_results=K, include=["distances"])
        return np.array(found["ids"], dtype=np.int64)

    yield 32, search


def lance_table(vectors: Array) -> Iterator[tuple[int, Search]]:
    import lancedb
    import pyarrow

    with tempfile.TemporaryDirectory() as folder:
        column = pyarrow.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
        rows = pyarrow.table({"id": np.arange(len(vectors)), "vector": column})
        table = lancedb.connect(folder).create_table("c", rows)
        table.create_index(metric="dot", vector_column_name="vector", num_partitions=1024, num_sub_vectors=64)
        for effort in EFFORTS:

            def one(query: Array, effort: int = effort) -> Any:
                asked = table.search(query, vector_column_name="vector").distance_type("dot").nprobes(effort)
                return asked.refine_factor(10).limit(K).select(["id", "_distance"]).to_arrow()["id"].to_numpy()

            def search(queries: Array, one: Any = one) -> Array:
                found = np.full((len(queries), K), -1)
                for row, query in enumerate(queries):
                    ids = one(query)
                    found[row, : len(ids)] = ids
                return found

            yield effort, search


def qdrant_memory(vectors: Array) -> Iterator[tuple[int, Search]]:
    """The client's in-memory mode: numpy, exact."""
    from qdrant_client import QdrantClient, models

    client = QdrantClient(":memory:")
    client.create_collection("c", models.VectorParams(size=vectors.shape[1], distance=models.Distance.DOT))
    for start in range(0, len(vectors), 5000):
        part = vectors[start : start + 5000]
        client.upsert("c", models.Batch(ids=list(range(start, start + len(part))), vectors=part.tolist()))

    def search(queries: Array) -> Array:
        asked = [models.QueryRequest(query=query.tolist(), limit=K) for query in queries]
        return np.array([[point.id for point in one.points] for one in client.query_batch_points("c", asked)])

    yield 0, search


PEERS: dict[str, Callable[[Array], Iterator[tuple[int, Search]]]] = {
    "hnswlib": hnswlib_index,
    "usearch": usearch_index,
    "ScaNN": scann_index,
    "chromadb": chroma_collection,
    "lancedb": lance_table,
    "qdrant-client in memory": qdrant_memory,
}
