"""Embeddings of real images by a trained model, as many as wanted, for `search.py --embeddings`.

    python benchmarks/embeddings.py ~/.raydml/runs/demo-glyphs/model 1000000 embeddings.npz

Glyphs of the fonts on this machine, shifted, turned and scaled at random, anew each time, are embedded by the exported
model, which takes 32 x 32 grey pixels (that of `raydml demo` does). QUERIES more are embedded, to be searched for.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from raydml.data import open_dataset
from raydml.data.augment import Augmentation
from raydml.models import load_model
from raydml.models.exported import embed_tensors
from raydml.runs import home
from raydml.spec import AugmentSpec, GlyphsData

QUERIES = 1024
AT_ONCE = 8192


def main(model: str, rows: int, target: str) -> None:
    """Write vectors (rows, d), queries (QUERIES, d), both float32 of unit length, and classes (rows,)."""
    torch.set_num_threads(1)
    embedder = load_model(model)
    items = open_dataset(GlyphsData(kind="glyphs", image_size=32, grayscale=True), home())
    changes = Augmentation(AugmentSpec(shift=0.1, rotate=12.0, scale=0.15), seed=0)
    images = np.stack([items.read(item) for item in range(len(items.items.labels))])
    order = np.random.default_rng(0).integers(0, len(images), rows + QUERIES)
    parts = []
    for start in range(0, len(order), AT_ONCE):
        chosen = order[start : start + AT_ONCE]
        changed = changes.images(images[chosen], start, np.arange(len(chosen)))
        tensors = embedder.preprocessing.tensor(changed)
        parts.append(embed_tensors(embedder.model, tensors).float().numpy())
        print(f"{start + len(chosen):,} of {len(order):,}", end="\r", flush=True)
    vectors = np.concatenate(parts)
    np.savez(target, vectors=vectors[:rows], queries=vectors[rows:], classes=items.items.labels[order[:rows]])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), str(Path(sys.argv[3])))
