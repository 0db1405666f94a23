"""Workers as a grid of named axes: how many workers in, their places and the lines along which they talk out."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from raydml.errors import SpecError
from raydml.spec import MeshSpec


@dataclass(frozen=True)
class Mesh:
    """Workers in a grid: neighbours in rank differ along the last axis, so that those who talk most are nearest."""

    axes: tuple[str, ...]
    lengths: tuple[int, ...]

    @property
    def size(self) -> int:
        """Workers in the grid."""
        return prod(self.lengths)

    def length(self, axis: str) -> int:
        """Workers along an axis; 1 along one that is not there."""
        return self.lengths[self.axes.index(axis)] if axis in self.axes else 1

    def place(self, rank: int) -> dict[str, int]:
        """Coordinates of a worker by axis."""
        found = {}
        for axis, length in zip(reversed(self.axes), reversed(self.lengths), strict=True):
            rank, found[axis] = divmod(rank, length)
        return found

    def line(self, rank: int, axis: str) -> list[int]:
        """Ranks of the workers that differ from this one along the axis alone, itself among them, in order."""
        place = self.place(rank)
        others = ({**place, axis: number} for number in range(self.length(axis)))
        return [self.rank(other) for other in others]

    def rank(self, place: dict[str, int]) -> int:
        """The worker at these coordinates."""
        rank = 0
        for axis, length in zip(self.axes, self.lengths, strict=True):
            rank = rank * length + place[axis]
        return rank


def mesh_of(spec: MeshSpec, workers: int) -> Mesh:
    """The grid of this many workers. Raises SpecError, with the product, where they cannot form it.

    A worker alone is a grid of one, whatever the spec: it runs the whole model.
    """
    if workers == 1:
        return Mesh(("data",), (1,))
    data = workers // spec.cell if spec.data == -1 else spec.data
    if data * spec.cell != workers or data == 0:
        wanted = "any" if spec.data == -1 else spec.data
        raise SpecError(
            f"{workers} workers cannot form parallel.mesh: data {wanted} x tensor {spec.tensor} x pipeline "
            f"{spec.pipeline} = {f'a multiple of {spec.cell}' if spec.data == -1 else spec.data * spec.cell}"
        )
    if spec.cell > 1:
        return Mesh(("data", "pipeline", "tensor"), (data, spec.pipeline, spec.tensor))
    shard = data if spec.shard == -1 else spec.shard
    if data % shard:
        raise SpecError(
            f"{data} workers cannot form parallel.mesh: copies of the model, {spec.shard} workers (mesh.shard) each"
        )
    return Mesh(("data",), (data,)) if shard == data else Mesh(("replicate", "shard"), (data // shard, shard))
