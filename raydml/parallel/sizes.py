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


def _whole_meshes(spec: JobSpec, workers: int) -> Fit:
    """Groups of workers that hold one copy of the model together are used whole, and share the slices out."""
    mesh, slices = spec.parallel.mesh, spec.batch.virtual_workers
    unit = mesh.cell * (max(1, mesh.shard) if workers // mesh.cell >= mesh.shard else 1)
    most = min(workers, slices * mesh.cell) // unit * unit
    used = most if mesh.data == -1 else mesh.data * mesh.cell
    if not 0 < used <= workers:
        wanted = f"data {mesh.data} x " if mesh.data != -1 else ""
        raise SpecError(
            f"{workers} workers cannot form parallel.mesh: {wanted}tensor {mesh.tensor} x pipeline {mesh.pipeline} = "
            f"{unit if mesh.data == -1 else mesh.data * mesh.cell} workers at least"
        )
    if used == workers:
        return Fit(workers)
    if mesh.data != -1:
        why = f"parallel.mesh is data {mesh.data} x tensor {mesh.tensor} x pipeline {mesh.pipeline} = {used}"
    elif workers // unit * unit > used:
        why = f"each takes at least one of the batch.virtual_workers = {slices} slices"
    else:
        why = f"parallel.mesh holds a copy of the model on {unit} workers"
    return Fit(used, f"{workers} workers are rounded down to {used}: {why}")


_FITS: dict[str, Callable[[JobSpec, int], Fit]] = {
    "ddp": _any_up_to_the_slices,
    "feature": _any_up_to_the_slices,
    "fsdp": _whole_meshes,
}
