"""A survey of the data in; sizes of the batch, the pictures and the run out, each by a stated rule of thumb."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from raydml.data.survey import Survey
from raydml.errors import DataError

_BATCH = 128  # rows wanted in a global batch
_PASSES = 30  # times that training should see each item
_FEWEST_STEPS, _MOST_STEPS = 200, 5000
_SLICE = 4  # fewest rows of a slice, for its batch-norm statistics


@dataclass(frozen=True)
class Choices:
    """Numbers of a first spec, and what they were derived from."""

    num_classes: int  # of training
    num_items: int  # of training
    median_samples: int  # items of a training class
    classes: int  # P
    samples: int  # K
    virtual_workers: int  # V
    workers: int
    steps: int
    every: int  # steps between evaluations and between checkpoints
    image_size: int
    length: int  # n-grams of a text


def choose(survey: Survey) -> Choices:
    """P x K near 128 rows with P at most 32; V at most 8; steps for about 30 passes; sizes by what is usual.

    DataError where fewer than two classes train.
    """
    counts = np.bincount(survey.dataset.training_labels)
    if len(counts) < 2:
        raise DataError(f"{len(counts)} classes are of the split train, and a batch needs at least 2 of them")
    median = int(np.median(counts))
    classes = _power_of_two(min(32, len(counts)))
    samples = max(2, min(_power_of_two(max(1, median)), _BATCH // classes))
    virtual_workers = max(1, min(8, _power_of_two(max(1, classes * samples // _SLICE))))
    passes = _PASSES * int(counts.sum()) / (classes * samples)
    steps = int(min(max(_FEWEST_STEPS, round(passes, -2)), _MOST_STEPS))
    return Choices(
        num_classes=len(counts),
        num_items=int(counts.sum()),
        median_samples=median,
        classes=classes,
        samples=samples,
        virtual_workers=virtual_workers,
        workers=min(virtual_workers, os.cpu_count() or 1),
        steps=steps,
        every=max(50, steps // 10),
        image_size=_image_size(survey.sides),
        length=_length(survey.lengths),
    )


def _power_of_two(limit: int) -> int:
    """The largest power of two up to the limit."""
    return 1 << (limit.bit_length() - 1)


def _image_size(sides: tuple[int, ...]) -> int:
    """The usual longer side, up to 128 pixels: small_cnn is made for small pictures."""
    usual = int(np.median(sides)) if sides else 32
    return next((size for size in (32, 64, 96) if usual <= size * 1.25), 128)


def _length(lengths: tuple[int, ...]) -> int:
    """Enough n-grams for 95 of 100 texts, as a multiple of 32 up to 1024."""
    enough = int(np.quantile(lengths, 0.95)) if lengths else 256
    return min(1024, -(-enough // 32) * 32)
