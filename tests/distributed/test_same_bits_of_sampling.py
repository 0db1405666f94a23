"""One SHA-256 for one, two and three workers with every way to choose classes, and with a memory of past batches."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from raydml.parallel import Group
from raydml.spec import JobSpec
from raydml.training import neighbours
from tests.distributed.harness import run_processes, small_spec, train_cases, write_images

TRAIN = {"steps": 5, "evaluate_every": 0}
HARD = {"kind": "hard_classes", "neighbours": 2, "refresh_every": 2, "images": 3}
MEMORY = {"size": 100, "start_step": 1}


def skewed_images(folder: Path) -> Path:
    """The harness's images without some of theirs: class c keeps 1 + c modulo 6 of its 6."""
    found = np.load(write_images(folder))
    labels = found["labels"]
    kept = np.concatenate([np.flatnonzero(labels == number)[: 1 + number % 6] for number in np.unique(labels)])
    path = folder / "skewed.npz"
    np.savez(path, **{name: found[name][kept] for name in ("inputs", "labels", "splits")})
    return path


def manifest(images: Path) -> dict[str, str]:
    """The same images as files, the categories by class."""
    found = np.load(images)
    table = images.parent / "table.csv"
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "category"])
        for row, (pixels, label, split) in enumerate(
            zip(*(found[n] for n in ("inputs", "labels", "splits")), strict=True)
        ):
            Image.fromarray(pixels).save(images.parent / f"{row}.png")
            writer.writerow([f"{row}.png", label, split, "even" if label % 2 == 0 else "odd"])
    return {"data.kind": "manifest", "data.path": str(table)}


def cases(folder: Path) -> dict[str, JobSpec]:
    images = skewed_images(folder)

    def case(sampling: dict[str, Any], **changes: Any) -> JobSpec:
        return small_spec(images, train=TRAIN, **{"batch.sampling": sampling} | changes)

    triplet = {"kind": "triplet", "margin": 0.5, "miner": {"kind": "semihard"}, "memory": MEMORY}
    return {
        "uniform": case({"kind": "uniform"}),
        "frequency": case({"kind": "frequency"}),
        "frequency, two loader processes": case({"kind": "frequency"}, **{"data.loader_processes": 2}),
        "sqrt_frequency": case({"kind": "sqrt_frequency"}),
        "hierarchical": case({"kind": "hierarchical", "categories_per_batch": 2}, **manifest(images)),
        "hard_classes": case(HARD),
        "hard_classes, two loader processes": case(HARD, **{"data.loader_processes": 2}),
        "memory, contrastive": case({"kind": "uniform"}, loss={"kind": "contrastive", "memory": MEMORY}),
        "memory, mined triplets, frequency": case({"kind": "frequency"}, loss=triplet),
    }


def train_in_small_blocks(group: Group, given: Any) -> Any:
    """As `train_cases`, with classes compared five at a time, so that several workers have some to compare."""
    neighbours.BLOCK = 5
    return train_cases(group, given)


def test_one_sha256_for_one_two_and_three_workers(tmp_path: Path) -> None:
    documents = {name: spec.model_dump_json() for name, spec in cases(tmp_path).items()}
    assert all(json.loads(document)["parallel"]["precision"] == "float32" for document in documents.values())
    seen: dict[str, set[str]] = {name: set() for name in documents}
    for size in (1, 2, 3):
        for result in run_processes(size, train_in_small_blocks, (documents, str(tmp_path)), tmp_path):
            for name, (digest, losses) in result.items():
                assert losses[0] != losses[-1], f"{name}: nothing was trained"
                seen[name].add(digest)
    assert all(len(digests) == 1 for digests in seen.values()), seen
    for name in ("frequency", "hard_classes"):
        assert seen[name] == seen[f"{name}, two loader processes"]
    assert len(set.union(*seen.values())) == len(documents) - 2  # every other option changes the bits
