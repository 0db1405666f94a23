"""Whether a step's embeddings are gathered on every worker or travel around a ring: the bits are the same."""

from __future__ import annotations

import torch
from torch import Tensor

from raydml.errors import SpecError
from raydml.losses import Objective
from raydml.losses.objective import TILED_FROM
from raydml.losses.tiled.layout import COLUMNS
from raydml.parallel import Group
from raydml.spec import JobSpec

RING_FROM = 64 * 2**20  # bytes of embeddings; gathering them takes several times as much
WATCHED_ROWS = 16_384  # of a batch that travels, at most: what health is measured from


class Exchange:
    """What a worker holds of a batch of embeddings: where they travel, its own rows alone.

    Raises SpecError for a ring with a loss that needs all rows.
    """

    def __init__(self, spec: JobSpec, objective: Objective, group: Group) -> None:
        self._group = group
        can, wanted = objective.travels(spec.batch.slice_size), spec.parallel.exchange
        if wanted == "ring" and not can:
            raise SpecError(
                f"parallel.exchange: ring is for losses in tiles, from {TILED_FROM} rows on, without center loss and "
                f"regularizer; where pairs of rows are compared in slices of more than {COLUMNS // 2}. Here is loss "
                f"{spec.loss.kind} over {spec.batch.size} rows in slices of {spec.batch.slice_size}: choose gather",
                path="parallel.exchange",
            )
        width = 8 if spec.parallel.precision == "float64" else 4
        large = spec.batch.size * spec.model.dimension * width >= RING_FROM
        self.travels = wanted == "ring" or (wanted == "auto" and can and large)

    def take(self, own: Tensor) -> Tensor:
        """Own rows -> what the objective is given: all rows, or the own ones."""
        return own if self.travels else self._group.gather_slices(own)

    def finite(self, rows: Tensor) -> bool:
        """Whether all rows of the batch are, told by what `take` gave; all workers decide alike."""
        bad = not bool(rows.isfinite().all())
        return not (self._group.vote([bad])[0] if self.travels else bad)

    def sample(self, own: Tensor) -> Tensor:
        """Own values of each row -> those of all rows, or of as many first ones of each slice where rows travel."""
        return self._group.gather_slices(self._first(own, len(self._group.owned)))

    def sample_labels(self, labels: Tensor) -> Tensor:
        """Labels of the whole batch -> those of the rows of `sample`."""
        return self._first(labels, self._group.num_slices)

    def _first(self, values: Tensor, num_slices: int) -> Tensor:
        if not self.travels:
            return values
        each = max(1, WATCHED_ROWS // self._group.num_slices)
        return torch.cat([part[:each] for part in values.chunk(num_slices)])
