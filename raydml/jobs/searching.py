"""The attempt of a sweep: its order in; its study searched, or gone on with, and what its winner is, out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from structlog.typing import FilteringBoundLogger

from raydml.jobs.sweeping import study_folder
from raydml.jobs.workplace import Workplace
from raydml.spec import JobSpec
from raydml.tuning.record import StudyRecord
from raydml.tuning.result import StudyResult, read_result
from raydml.tuning.study import tune


def searched(
    place: Workplace,
    spec: JobSpec,
    granted: int,
    address: str | None,
    collections: Path,
    log: FilteringBoundLogger,
) -> StudyResult:
    """The finished study, its winner trained and measured as the job's own run. Raises what `tune` raises."""
    folder = study_folder(place.home, place.job)
    if StudyRecord(folder).read().get("state") != "succeeded":
        tune(spec, address=address, home=place.home, collections=collections, listen=_Telling(place, granted, log))
    return read_result(folder)


def winner_of(study: StudyResult) -> dict[str, Any]:
    """What a sweep's result tells beside that of its winner's run: the winner's values, its score and its spec."""
    number = study.facts["winner"]
    (row,) = [row for row in study.rows if row.configuration == number]
    winner = {"configuration": number, "values": row.values, "score": row.score, "deviation": row.deviation}
    return {"winner": winner, "best_spec": yaml.safe_load((study.folder / "best.yaml").read_text())}


class _Telling:
    """For `tune(listen=...)`: a line whenever trials came to another state, and that the study has begun."""

    def __init__(self, place: Workplace, granted: int, log: FilteringBoundLogger) -> None:
        self._place, self._granted, self._log = place, granted, log
        self._last: Counter[str] | None = None

    def __call__(self, study: StudyResult) -> None:
        if self._last is None:
            self._place.write_started([self._granted], (self._granted, self._granted))
        states: Counter[str] = Counter(row.state for row in study.rows)
        if states != self._last:
            best = study.best
            known = {} if best is None or best.score is None else {"best": best.configuration, "score": best.score}
            self._log.info("trials", **states, **known)
        self._last = states
