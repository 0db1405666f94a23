"""How many of the workers that are there a strategy can use, and why not all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raydml.errors import SpecError
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
    least = max(wanted.min, unit(spec))
    sizes = {fit(spec, number).workers for number in range(least, max(least, wanted.max) + 1)}
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


def unit(spec: JobSpec) -> int:
    """Workers that hold one copy of the model together: a group is a multiple of them."""
    mesh = spec.parallel.mesh
    return mesh.cell * max(1, mesh.shard if mesh.data == -1 else mesh.data)


def _whole_meshes(spec: JobSpec, workers: int) -> Fit:
    mesh, slices, each = spec.parallel.mesh, spec.batch.virtual_workers, unit(spec)
    grid = f"data {'*' if mesh.data == -1 else mesh.data} x tensor {mesh.tensor} x pipeline {mesh.pipeline}"
    if mesh.shard != -1:
        grid += f", {mesh.shard} of them a copy"
    used = each if mesh.data != -1 else min(workers, slices * mesh.cell) // each * each
    if not 0 < used <= workers:
        raise SpecError(f"{workers} workers cannot form parallel.mesh ({grid}): it takes {each} at least")
    if used == workers:
        return Fit(workers)
    spare = mesh.data == -1 and workers // each * each > used
    why = (
        f"those with the same data coordinate take at least one of the batch.virtual_workers = {slices} slices"
        if spare
        else f"parallel.mesh ({grid}) takes {'' if mesh.data != -1 else 'multiples of '}{each}"
    )
    return Fit(used, f"{workers} workers are rounded down to {used}: {why}")


_FITS: dict[str, Callable[[JobSpec, int], Fit]] = {
    "ddp": _any_up_to_the_slices,
    "feature": _any_up_to_the_slices,
    "fsdp": _whole_meshes,
    "tensor": _whole_meshes,
    "pipeline": _whole_meshes,
    "auto": _any_up_to_the_slices,
}
