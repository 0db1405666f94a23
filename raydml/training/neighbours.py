"""Some images of each class and the model in; for each class the classes that the model takes for it out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raydml.data import Dataset
from raydml.membership import share
from raydml.parallel import Group
from raydml.training.evaluate import embed_split

BLOCK = 512  # classes compared at once: fixed, so that the bits do not depend on the workers


def class_means(
    examples: Sequence[NDArray[np.int64]],
    model: nn.Module,
    dataset: Dataset,
    group: Group,
    dimension: int,
    *,
    in_step: bool = False,
) -> Tensor:
    """(C, dimension) float64 mean embeddings, the same on every worker; the model runs in evaluation mode.

    examples: of each class, positions among the training items; in_step: as in `embed_split`.
    """
    items = dataset.indices("train")[np.concatenate(examples)]
    embeddings = embed_split(model, dataset, items, group, dimension, in_step=in_step).astype(np.float64)
    sizes = np.array([len(each) for each in examples])
    sums = np.add.reduceat(embeddings, np.cumsum(sizes) - sizes, axis=0)
    return torch.from_numpy(sums / sizes[:, None])


def nearest_rows(rows: Tensor, count: int, group: Group, device: torch.device) -> NDArray[np.int64]:
    """(C, count) the other rows at the smallest Euclidean distance from each of (C, D), nearest first.

    Blocks of rows are dealt to the workers and their answers gathered, so that all hold one table.
    """
    blocks = [range(start, min(start + BLOCK, len(rows))) for start in range(0, len(rows), BLOCK)]
    squares = rows.square().sum(1)  # (C,)
    parts = [torch.empty(0, count, dtype=torch.int64)]
    for index in share(group.rank, group.size, len(blocks)):
        block = torch.arange(blocks[index].start, blocks[index].stop)
        distances = squares - 2 * rows[block] @ rows.T  # (block, C), but for the block's own squares
        distances[torch.arange(len(block)), block] = torch.inf
        parts.append(distances.topk(count, largest=False).indices)
    counts = [sum(len(blocks[index]) for index in share(rank, group.size, len(blocks))) for rank in range(group.size)]
    return group.gather_rows(torch.cat(parts).to(device), counts).cpu().numpy()
