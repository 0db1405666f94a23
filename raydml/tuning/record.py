"""A study's folder: its state, configurations, trials, events and requests; written by its driver, read by any.

study.json                   state, digest, reason, seconds of all attempts, the winner
spec.yaml                    the study's spec
configurations/00003.json    what varies, and the step that it may train to
generations/00000040.json    who copies whom after that step, before anybody trains on
trials/00003-0/              the run of configuration 3, the first seed and fold; its trial writes run.json
events.jsonl                 one line for each thing that happened
best.yaml, results.parquet   the winner's spec and a row per trial
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from raydml.files import append_line, write_json
from raydml.training.lines import read_lines
from raydml.tuning.space import Configuration


@dataclass(frozen=True)
class Configured:
    """A configuration as the driver keeps it: which values, and to which step its trials may train."""

    number: int
    values: Configuration
    target: int
    lineage: list[dict[str, Any]] = field(default_factory=list)  # step, parent, values before


@dataclass(frozen=True)
class TrialState:
    """What a trial says of itself. `state` is waiting, running, paused, trained, stopped or failed.

    `evaluations` are validation metrics by step, `seconds` those of its steps, `bytes` those of
    the model's weights.
    """

    name: str
    seed: int
    state: str = "waiting"
    step: int = 0
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0
    bytes: int = 0
    reason: str | None = None


class StudyRecord:
    """The files of one study."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stop = folder / "stop"

    def read(self) -> dict[str, Any]:
        """What study.json says; empty before it began."""
        return _read(self.folder / "study.json")

    def change(self, **fields: Any) -> None:
        """Write these over the known ones, whole or not at all."""
        write_json(self.folder / "study.json", self.read() | fields | {"updated": round(time.time(), 3)})

    def configurations(self) -> list[Configured]:
        """All that were made, by number."""
        paths = sorted(self.folder.glob("configurations/*.json"))
        return [Configured(**_read(path)) for path in paths]

    def keep(self, configured: Configured) -> None:
        """Make a configuration, or change what it may do."""
        write_json(self.folder / "configurations" / f"{configured.number:05d}.json", asdict(configured))

    def trial_folder(self, name: str) -> Path:
        """The run's folder of a trial."""
        return self.folder / "trials" / name

    def trial(self, name: str) -> TrialState:
        """What a trial says of itself."""
        facts = _read(self.trial_folder(name) / "run.json")
        evaluations = {int(step): metrics for step, metrics in facts.get("evaluations", {}).items()}
        known = {key: facts[key] for key in ("state", "step", "seconds", "bytes", "reason") if key in facts}
        return TrialState(name, facts.get("seed", 0), evaluations=evaluations, **known)

    def change_trial(self, name: str, **fields: Any) -> None:
        """Write these over what a trial says; only while nobody runs it."""
        path = self.trial_folder(name) / "run.json"
        write_json(path, _read(path) | fields)

    def generation(self, step: int) -> dict[str, Any]:
        """Who copies whom after this step, and whether that is done; empty before it was decided."""
        return _read(self.folder / "generations" / f"{step:08d}.json")

    def keep_generation(self, step: int, document: dict[str, Any]) -> None:
        """Decide it, or tell that it is done."""
        write_json(self.folder / "generations" / f"{step:08d}.json", document)

    def pending_generation(self) -> int | None:
        """The step of a generation that was decided and not yet carried out."""
        steps = [int(path.stem) for path in sorted(self.folder.glob("generations/*.json"))]
        return next((step for step in steps if not self.generation(step)["done"]), None)

    def log(self, event: str, **values: Any) -> None:
        """Append one event, durably."""
        line = {"time": round(time.time(), 3), "event": event, **values}
        append_line(self.folder / "events.jsonl", json.dumps(line), durable=True)

    def events(self) -> list[dict[str, Any]]:
        """All so far."""
        path = self.folder / "events.jsonl"
        return read_lines(path)[0] if path.exists() else []

    def request_stop(self) -> None:
        """Ask the study to stop: its trials keep a checkpoint, and it goes on by the same command."""
        self._stop.touch()

    def stop_requested(self) -> bool:
        """Whether somebody asked."""
        return self._stop.exists()

    def clear_requests(self) -> None:
        """Before it starts: forget an old request."""
        self._stop.unlink(missing_ok=True)


def trial_names(number: int, models: int) -> list[str]:
    """Names of a configuration's trials, one per seed; of folds, those of a seed follow each other."""
    return [f"{number:05d}-{index}" for index in range(models)]


def scores(trials: Sequence[TrialState], objective: str, *, running_best: bool) -> dict[int, float]:
    """Mean score of a configuration's trials at each step that all of them reached.

    running_best: the best evaluation so far, as of the model that would be exported; else that of the step.
    """
    each = [_scores(trial.evaluations, objective, running_best) for trial in trials]
    common = set.intersection(*(set(found) for found in each)) if each else set()
    return {step: float(np.mean([found[step] for found in each])) for step in sorted(common)}


def _scores(evaluations: dict[int, dict[str, float]], objective: str, running_best: bool) -> dict[int, float]:
    found: dict[int, float] = {}
    highest = float("-inf")
    for step in sorted(evaluations):
        value = evaluations[step][objective]
        highest = max(highest, value)
        found[step] = highest if running_best else value
    return found


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found
