"""A job and what the cost model says of it -> the trials worth making, and the job of each of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from raydml.parallel.estimate import Candidate
from raydml.parallel.measured import Trial
from raydml.spec import JobSpec

# Options beside the strategy that keep what is learned, and those that round, and so are tried only when asked.
FAST: dict[str, Any] = {"parallel.numerics": "fast"}
ROUNDING: tuple[dict[str, Any], ...] = (
    {"parallel.precision": "bf16"},
    {"parallel.compression": "fp16"},
    {"parallel.compression": "bf16"},
    {"parallel.compression": "powersgd"},
)


def trials_of(spec: JobSpec, found: list[Candidate], share: int, *, rounding: bool) -> list[Trial]:
    """Trials in order of promise: every candidate of the cost model, and variants that the job does not rule out.

    A candidate that is impossible, or holds more than half of `share` bytes, comes with the reason and is not tried,
    unless nothing fits. Variants: class vectors on their owners or on all; with ddp, plain sums and fewer workers;
    `rounding` adds bf16 and compressed gradients.
    """
    possible = [candidate for candidate in found if candidate.impossible is None]
    fitting = [candidate for candidate in possible if 2 * candidate.memory <= share] or possible
    trials = [_tried(spec, candidate, candidate in fitting, share) for candidate in found]
    for candidate in fitting:
        base = Trial(candidate.strategy, candidate.mesh, candidate.workers)
        trials += [replace(base, changes=changes) for changes in _classes(spec)]
        if candidate.strategy != "ddp":
            continue
        trials += [replace(base, changes=FAST)] if spec.parallel.numerics == "bitwise" else []
        for workers in _fewer(spec, candidate.workers):
            trials += [replace(base, workers=workers, changes=changes) for changes in ({}, *_classes(spec))]
        trials += [replace(base, changes=changes, rounds=True) for changes in ROUNDING if rounding]
    return [trial for trial in map(lambda trial: _checked(spec, trial), trials) if trial is not None]


def spec_of(spec: JobSpec, trial: Trial, steps: int) -> JobSpec:
    """The job of a trial, of so many steps at least. Raises ValidationError where there is no such job."""
    document = spec.model_dump(mode="json")
    parallel = document["parallel"]
    parallel |= {"strategy": trial.strategy, "mesh": trial.mesh.model_dump()}
    parallel["workers"] |= {"min": trial.workers, "max": trial.workers}
    document["train"]["steps"] = max(steps, spec.train.steps)
    for path, value in trial.changes.items():
        *parents, last = path.split(".")
        part = document
        for name in parents:
            part = part[name]
        part[last] = value
    return JobSpec.model_validate(document)


def _tried(spec: JobSpec, candidate: Candidate, fits: bool, share: int) -> Trial:
    reason = candidate.impossible
    if reason is None and not fits:
        reason = (
            f"a worker would hold {candidate.memory / 2**30:.2f} GiB of its {share / 2**30:.2f}: half is for others"
        )
    return Trial(candidate.strategy, candidate.mesh, candidate.workers, failed=reason)


def _classes(spec: JobSpec) -> Iterator[dict[str, Any]]:
    """Class vectors the other way round, of a loss that has some."""
    held = getattr(spec.loss, "class_parallel", None)
    if hasattr(spec.loss, "class_parallel") and not held:
        yield {"loss.class_parallel": True}
    elif held and getattr(held, "sample_rate", 1) == 1:  # all classes on all workers do not sample
        yield {"loss.class_parallel": False}


def _fewer(spec: JobSpec, most: int) -> Iterator[int]:
    """Halves of the most workers, down to the fewest."""
    while (most := most // 2) >= spec.parallel.workers.min and most > 0:
        yield most


def _checked(spec: JobSpec, trial: Trial) -> Trial | None:
    """With its level; None for a variant of a job that cannot be, and the reason where the candidate itself cannot."""
    try:
        return replace(trial, exactness=spec_of(spec, trial, 1).exactness)
    except ValidationError as error:
        if trial.changes:
            return None
        return replace(trial, failed=trial.failed or str(error.errors()[0]["msg"]).removeprefix("Value error, "))
