"""How many of the workers that are there a strategy can use, and why not all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raydml.spec import JobSpec


@dataclass(frozen=True)
class Fit:
    """Workers that are used; `reason` says why they are fewer than there are, None where all are used."""

    workers: int
    reason: str | None = None


def fit(spec: JobSpec, workers: int) -> Fit:
    """The largest group that the spec's strategy can form of this many workers."""
    return _FITS[spec.parallel.strategy](spec, workers)


def world_sizes(spec: JobSpec) -> list[int]:
    """Numbers of workers that the run may have, ascending."""
    wanted = spec.parallel.workers
    sizes = {fit(spec, number).workers for number in range(wanted.min, wanted.max + 1)}
    return sorted(size for size in sizes if size >= wanted.min)


def _any_up_to_the_slices(spec: JobSpec, workers: int) -> Fit:
    slices = spec.batch.virtual_workers
    if workers <= slices:
        return Fit(workers)
    return Fit(
        slices,
        f"{workers} workers are rounded down to {slices}: each takes at least one of the batch.virtual_workers = "
        f"{slices} slices",
    )


_FITS: dict[str, Callable[[JobSpec, int], Fit]] = {"ddp": _any_up_to_the_slices}
