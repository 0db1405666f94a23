"""A checkpoint of a group: the first worker writes it, owners write their parts, and all know whether that worked.

Every round is a word of the first worker that all wait for: the draft, where others have parts to write into it, and
how it ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from raydml.errors import ResourceError
from raydml.parallel import Group, PeerLost
from raydml.training.checkpoints import Best, Checkpoints, Parts, write_parts
from raydml.training.record import RunRecord
from raydml.training.state import TrainingState

Outcome = str | ResourceError | None
"""Words for a save that failed, an error where training cannot go on, None where the checkpoint is whole."""


@dataclass(frozen=True)
class Saver:
    """Saves for one group; the `checkpoints` of its first worker count the failures in a row.

    `may_commit` is asked before a checkpoint appears: a writer that was given up publishes nothing.
    """

    checkpoints: Checkpoints
    record: RunRecord
    group: Group
    may_commit: Callable[[], bool] = lambda: True

    def save(self, state: TrainingState, best: Best | None, *, required: bool) -> bool:
        """Save the state; every worker calls this, and learns whether it is saved.

        A failure is logged as `failed_save` and training goes on. Raises the same ResourceError on every worker where
        it cannot: see `Checkpoints.try_save`; and PeerLost where a worker is lost, or this one is given up.
        """
        if self.group.rank == 0:
            outcome: Outcome = self.group.objects(self._lead(state, best, required))[0]
        else:
            outcome = self._follow(state)
        if isinstance(outcome, ResourceError):
            raise outcome
        if outcome is not None and self.group.rank == 0:
            self.record.log(step=state.step, failed_save=outcome, time=round(time.time(), 3))
        return outcome is None

    def _lead(self, state: TrainingState, best: Best | None, required: bool) -> Outcome:
        gather = partial(self._gather, state.apart)
        try:
            return self.checkpoints.try_save(state, best, required=required, gather=gather)
        except ResourceError as error:
            return error

    def _gather(self, apart: bool, draft: Path, own: Parts) -> dict[str, str]:
        """Let all owners write their parts into the draft. Raises ResourceError where one of them cannot."""
        digests = self._written(draft, own) if apart else {}
        if not self.may_commit():
            raise PeerLost("no word from the authority within the lease: the checkpoint is not published")
        return digests

    def _written(self, draft: Path, own: Parts) -> dict[str, str]:
        self.group.objects(draft)
        written = self.group.objects(_attempt(draft, own))
        for told in written:
            if isinstance(told, ResourceError):
                raise told
        return {name: digest for told in written for name, digest in told.items()}

    def _follow(self, state: TrainingState) -> Outcome:
        parts = state.capture().parts if state.apart else {}
        said: Path | Outcome = self.group.objects(None)[0]
        if isinstance(said, Path):
            self.group.objects(_attempt(said, parts))
            said = self.group.objects(None)[0]
            assert not isinstance(said, Path)
        return said


def _attempt(draft: Path, parts: Parts) -> dict[str, str] | ResourceError:
    try:
        return write_parts(draft, parts)
    except ResourceError as error:
        return error
