"""One batch of a training run in, numbers that tell whether it learns out; pure functions of tensors.

All of them compute in float64 and draw nothing at random: equal inputs on equal machines give equal numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

ROWS = 512  # most rows of which all pairs are compared
ROWS_PER_CLASS = 16  # most of them of one class
TILE = 4096  # proxies compared at once


def effective_rank(embeddings: Tensor) -> float:
    """exp of the entropy of the normalised singular values of the centred rows, (B, D): 1 to min(B - 1, D).

    With singular values s_k and p_k = s_k / sum(s): exp(-sum_k p_k ln p_k) (Roy and Vetterli, EUSIPCO 2007). 0 where
    all rows are equal, which has no singular value above rounding.
    """
    rows = scaled(embeddings)
    values = torch.linalg.svdvals(rows - rows.mean(0))
    values = values[values > torch.finfo(rows.dtype).eps * max(rows.shape) * rows.norm()]
    shares = values / values.sum()
    return float(torch.exp(-(shares * shares.log()).sum())) if len(values) else 0.0


def spread(embeddings: Tensor) -> float:
    """Root mean square distance of the rows (B, D) to their mean, over their root mean square norm: 0 to 1.

    0: all rows are equal; 1: they balance around the origin. Rows of zeros have spread 0.
    """
    rows = scaled(embeddings)
    size = float(rows.norm())
    return float((rows - rows.mean(0)).norm()) / size if size else 0.0


def scaled(embeddings: Tensor) -> Tensor:
    """The rows in float64, divided by their largest number, so that no square overflows."""
    rows = embeddings.double()
    return rows / rows.abs().max().clamp(min=torch.finfo(rows.dtype).tiny)


def silent_share(cotangents: Tensor) -> float:
    """Share of rows (B, D) of dL/d(embeddings) that are zero: rows of which the loss asks nothing.

    For a loss of tuples with a margin: rows all of whose tuples have loss 0, or that are in no tuple.
    """
    return float((cotangents == 0).all(1).double().mean())


def compared_rows(labels: Tensor) -> Tensor:
    """Which rows of a batch, labels (B,), stand for it in pairs: at most ROWS, in order of label.

    At most ROWS_PER_CLASS of a class, so that many classes meet.
    """
    order = labels.argsort(stable=True)
    ordered = labels[order]
    place = torch.arange(len(labels), device=labels.device) - torch.searchsorted(ordered, ordered)  # within the class
    return order[place < ROWS_PER_CLASS][:ROWS]


def pair_health(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    """Cosine similarities of all pairs of rows (B, D) with labels (B,); empty without a positive and a negative pair.

    - gap: mean over positive pairs (one class, two rows) minus mean over negative pairs
    - hardest_gap: mean over anchors of their least similar positive minus their most similar negative
    - ordered_triplets: share of triplets (anchor, positive, negative) whose positive is the more similar one
    """
    unit = functional.normalize(scaled(embeddings))
    similarity = unit @ unit.T  # (B, B)
    same = labels.unsqueeze(0) == labels.unsqueeze(1)
    positive, negative = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device), ~same
    if not bool(positive.any()) or not bool(negative.any()):
        return {}
    hardest_positive = similarity.masked_fill(~positive, torch.inf).amin(1)
    hardest_negative = similarity.masked_fill(~negative, -torch.inf).amax(1)
    # Every row has a negative where one has; rows without a positive are no anchors.
    hardest = (hardest_positive - hardest_negative)[positive.any(1)]
    negatives = similarity.masked_fill(~negative, torch.inf).sort(1).values
    below = torch.searchsorted(negatives, similarity)  # (B, B): negatives of the row that are less similar
    triplets = (positive.sum(1) * negative.sum(1)).sum()
    return {
        "gap": float(similarity[positive].mean() - similarity[negative].mean()),
        "hardest_gap": float(hardest.mean()),
        "ordered_triplets": float(below[positive].sum() / triplets),
    }


def nearest_proxies(embeddings: Tensor, proxies: Tensor, tile: int = TILE) -> Tensor:
    """The proxy of the largest cosine similarity to each row: (B, D), (N, D) -> (B,), ties to the first.

    O(B N D) time and O(B tile) memory.
    """
    unit = functional.normalize(scaled(embeddings))
    best = unit.new_full((len(unit),), -torch.inf)
    nearest = torch.zeros(len(unit), dtype=torch.long, device=unit.device)
    for start in range(0, len(proxies), tile):
        scores = unit @ functional.normalize(proxies[start : start + tile].double()).T  # (B, tile)
        values, first = scores.max(1)
        nearest = torch.where(values > best, first + start, nearest)
        best = torch.maximum(best, values)
    return nearest
