"""Embeddings and labels -> how well k-means with as many clusters as classes finds the classes again."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from raydml.evaluation.checks import check_labels, squared_norms
from raydml.evaluation.scores import Array

_ITERATIONS = 20


def clustering(embeddings: Array, labels: Array, *, seed: int, unit: bool = True) -> dict[str, float]:
    """Normalised and adjusted mutual information, `nmi` and `ami`, of the clusters and the labels.

    `embeddings` (n, d) are finite, `labels` (n,) integers; `unit` divides the embeddings by their lengths first.
    k-means is Faiss's, with Euclidean distances, 20 iterations and centres drawn by the seed. With H the entropies,
    I the mutual information and E its expectation over clusterings of the same sizes: nmi = I / mean(H, H'),
    ami = (I - E) / (mean(H, H') - E) (Vinh, Epps and Bailey, JMLR 11, 2010). NMI grows with the number of clusters
    even for random ones, AMI is then 0. Time grows with n x classes x d, and E with classes squared.
    """
    norms = np.sqrt(squared_norms("embeddings", embeddings))
    labels = check_labels("labels", labels, len(embeddings))
    scale = np.where(norms > 0, norms, 1.0) if unit else max(float(norms.max(initial=0.0)), 1e-300)
    vectors = np.ascontiguousarray((embeddings.T / scale).T, dtype=np.float32)
    found = _clusters(vectors, len(np.unique(labels)), seed)
    return {
        "nmi": float(normalized_mutual_info_score(labels, found)),
        "ami": float(adjusted_mutual_info_score(labels, found)),
    }


def _clusters(vectors: Array, number: int, seed: int) -> Array:
    """The cluster of each vector, int64 (n,); every vector takes part, and Faiss's seed has 31 bits."""
    options: dict[str, Any] = {"min_points_per_centroid": 1, "max_points_per_centroid": len(vectors)}
    means = faiss.Kmeans(vectors.shape[1], number, niter=_ITERATIONS, seed=seed % 2**31, **options)
    means.train(vectors)
    return np.asarray(means.index.search(vectors, 1)[1][:, 0])
