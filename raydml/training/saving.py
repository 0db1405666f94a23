"""A checkpoint of a group of workers: the first one writes it, and all know whether that worked."""

from __future__ import annotations

import time
from dataclasses import dataclass

from raydml.errors import ResourceError
from raydml.parallel import Group
from raydml.training.checkpoints import Best, Checkpoints
from raydml.training.record import RunRecord
from raydml.training.state import TrainingState


@dataclass(frozen=True)
class Saver:
    """Saves for one group; the `checkpoints` of its first worker count the failures in a row."""

    checkpoints: Checkpoints
    record: RunRecord
    group: Group

    def save(self, state: TrainingState, best: Best | None, *, otherwise: Best | None, required: bool) -> Best | None:
        """Save the state; every worker calls this, and gets the best step that has a checkpoint.

        That is `best`, or `otherwise` where `best` is this very step and could not be saved. A failure is logged as
        `failed_save` and training goes on. Raises the same ResourceError on every worker where it cannot: see
        `Checkpoints.try_save`.
        """
        outcome: str | ResourceError | None = self.group.objects(self._attempt(state, best, required))[0]
        if isinstance(outcome, ResourceError):
            raise outcome
        if outcome is None:
            return best
        if self.group.rank == 0:
            self.record.log(step=state.step, failed_save=outcome, time=round(time.time(), 3))
        return otherwise if best is not None and best.step == state.step else best

    def _attempt(self, state: TrainingState, best: Best | None, required: bool) -> str | ResourceError | None:
        if self.group.rank != 0:
            return None
        try:
            return self.checkpoints.try_save(state, best, required=required)
        except ResourceError as error:
            return error
