"""A run's spec and record in; its trackers, told of everything while it runs, out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from raydml.errors import ResourceError, SpecError
from raydml.spec import JobSpec, MlflowTracking, TensorboardTracking
from raydml.tracking.sender import Sender
from raydml.tracking.tracker import Facts, Tracker
from raydml.training.record import RunRecord

PATIENCE = 30.0  # seconds that the end of a run waits for its trackers


def _mlflow(spec: MlflowTracking, facts: Facts) -> Tracker:
    from raydml.tracking.mlflow_run import MlflowRun

    return MlflowRun(spec, facts)


def _tensorboard(spec: TensorboardTracking, facts: Facts) -> Tracker:
    from raydml.tracking.tensorboard_log import TensorboardLog

    return TensorboardLog(spec, facts)


TRACKERS: dict[str, Any] = {"mlflow": _mlflow, "tensorboard": _tensorboard}


def check_installed(spec: JobSpec) -> None:
    """Raises SpecError where a tracker's library is not there: before work starts, that can be mended."""
    missing = [each.kind for each in spec.tracking if find_spec(each.kind) is None]
    if missing:
        raise SpecError(
            f"tracking: {', '.join(missing)} is not installed: pip install 'raydml[tracking]', or leave it out"
        )


class Tracking:
    """Trackers of one attempt at a run, from entering it until it is left; what fails there is told and passed over."""

    def __init__(self, spec: JobSpec, record: RunRecord, home: Path) -> None:
        self._record = record
        facts = Facts(spec.name, "", record.folder, home, dict(_flat(spec.model_dump(mode="json"))))
        self._made = [
            partial(Sender, each.kind, partial(TRACKERS[each.kind], each), record, spec.batch.size, facts)
            for each in spec.tracking
        ]
        self._senders: list[Sender] = []

    def __enter__(self) -> Self:
        self._senders = [make() for make in self._made]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell how the run ended, which its record says; `tracking` of the record says what went wrong."""
        if not self._senders:
            return
        state = str(self._record.read().get("state"))
        for sender in self._senders:
            sender.close(state, PATIENCE)
        with suppress(ResourceError):  # of a full disk: the run is what matters
            self._record.change(tracking={sender.kind: sender.problem or "complete" for sender in self._senders})


def _flat(document: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """`{"train": {"steps": 9}}` -> ("train.steps", 9)."""
    for name, value in document.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
