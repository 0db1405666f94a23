"""A study's folder in; its leaderboard, its Pareto front and its winner out, from files alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from raydml.errors import RunError
from raydml.evaluation.leaderboard import Standing
from raydml.spec import JobSpec
from raydml.specfile import load_spec
from raydml.tuning.record import Configured, StudyRecord, TrialState, scores, trial_names
from raydml.tuning.significance import against_the_best, comparison, verdict
from raydml.tuning.space import readable
from raydml.tuning.trials import tuned

State = Literal["waiting", "running", "paused", "trained", "stopped", "failed"]
FIRST: tuple[State, ...] = ("failed", "running")  # of one trial, it is the state of its configuration


@dataclass(frozen=True)
class Row:
    """One configuration: its values by field, and what its trials reached on validation classes.

    `score` is the mean over seeds, and folds, at `step`, the last evaluation that all of them have, `deviation` the
    standard deviation over seeds, None of one. `stopped` ones were not worth more steps, `paused` ones may yet go on.
    """

    configuration: int
    values: dict[str, Any]
    state: State
    step: int = 0
    score: float | None = None
    deviation: float | None = None
    by_seed: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    bytes: int = 0
    on_front: bool = False
    lineage: list[dict[str, Any]] = field(default_factory=list)
    reason: str | None = None


@dataclass(frozen=True)
class StudyResult:
    """A study as it is on disk: the best configurations first."""

    folder: Path
    spec: JobSpec
    facts: dict[str, Any]
    rows: list[Row]

    @property
    def name(self) -> str:
        """Its name, which is that of the winner's run too."""
        return self.folder.name

    @property
    def state(self) -> str:
        """running, interrupted, failed or succeeded."""
        return str(self.facts["state"])

    @property
    def best(self) -> Row | None:
        """The best configuration that took all steps; of those that took most of them, where none did."""
        return best_row(self.rows)

    @cached_property
    def standings(self) -> dict[int, Standing]:
        """How configurations compare with the best over paired seeds, by number; who did not come as far is missing."""
        return against_the_best(self.rows)

    @property
    def verdict(self) -> str:
        """One sentence: which configuration is best, and whether that can be told from chance."""
        return verdict(self.standings, len(self.rows))

    @property
    def front(self) -> list[Row]:
        """Finished configurations that no other one beats in both objectives, by cost."""
        cost = tuned(self.spec).cost
        rows = [row for row in self.rows if row.on_front]
        return sorted(rows, key=lambda row: float(getattr(row, cost))) if cost else rows

    def summary(self) -> dict[str, Any]:
        """The document that `raydml tune --json` ends with."""
        best = self.best
        return {
            "study": self.name,
            "state": self.state,
            "objective": tuned(self.spec).objective,
            "cost": tuned(self.spec).cost,
            "seconds": self.facts.get("seconds", 0.0),
            "best": best.configuration if best else None,
            "verdict": self.verdict,
            "best_spec": str(self.folder / "best.yaml"),
            "results": str(self.folder / "results.parquet"),
            "run": self.facts.get("run"),
            "reality_check": self.facts.get("reality_check"),
            "configurations": [asdict(row) | comparison(self.standings.get(row.configuration)) for row in self.rows],
        }


def read_result(folder: Path) -> StudyResult:
    """The study of a folder, finished or not. Raises RunError where there is none."""
    record = StudyRecord(folder)
    facts = record.read()
    if not facts:
        raise RunError(f"there is no study in {folder}")
    spec = load_spec(folder / "spec.yaml")
    rows = [_row(each, record, spec) for each in record.configurations()]
    marked = mark_front(rows, tuned(spec).cost, spec.train.steps)
    return StudyResult(folder, spec, facts, sorted(marked, key=_order))


def best_row(rows: Sequence[Row]) -> Row | None:
    """The first of the leaderboard that has a score."""
    ordered = sorted((row for row in rows if row.score is not None and row.state != "failed"), key=_order)
    return ordered[0] if ordered else None


def mark_front(rows: Sequence[Row], cost: str | None, steps: int) -> list[Row]:
    """The rows with `on_front` where no finished row is better in one objective and no worse in the other."""
    finished = [row for row in rows if row.score is not None and row.step == steps and row.state == "trained"]
    if cost is None:
        return list(rows)

    def beaten(row: Row) -> bool:
        return any(_beats(other, row, cost) for other in finished)

    return [replace(row, on_front=any(row is each for each in finished) and not beaten(row)) for row in rows]


def _beats(one: Row, other: Row, cost: str) -> bool:
    assert one.score is not None and other.score is not None
    own, theirs = getattr(one, cost), getattr(other, cost)
    return one.score >= other.score and own <= theirs and (one.score > other.score or own < theirs)


def _order(row: Row) -> tuple[Any, ...]:
    """Finished ones first, then by steps; the best first, and of equal ones the one that was made first."""
    score = row.score if row.score is not None else float("-inf")
    return (row.state == "failed" or row.score is None, -row.step, -score, row.configuration)


def _row(configured: Configured, record: StudyRecord, spec: JobSpec) -> Row:
    tune = tuned(spec)
    trials = [record.trial(name) for name in trial_names(configured.number, tune.models)]
    running_best = spec.train.export == "best" and tune.algorithm.kind != "pbt"
    found = scores(trials, tune.objective, running_best=running_best)
    step = max(found, default=0)
    single = {
        seed: scores(list(own), tune.objective, running_best=running_best)
        for seed, own in groupby(trials, key=lambda trial: trial.seed)
    }
    by_seed = {seed: known[step] for seed, known in single.items() if step in known}
    return Row(
        configured.number,
        readable(tune.space, configured.values),
        _state(trials, record),
        step,
        found.get(step),
        stdev(by_seed.values()) if len(by_seed) > 1 else None,
        by_seed,
        round(fmean(trial.seconds for trial in trials), 4),
        max(trial.bytes for trial in trials),
        lineage=configured.lineage,
        reason=next((trial.reason for trial in trials if trial.reason), None),
    )


def _state(trials: Sequence[TrialState], record: StudyRecord) -> State:
    states = {trial.state for trial in trials}
    for state in FIRST:
        if state in states:
            return state
    if states == {"trained"}:
        return "trained"
    if states == {"waiting"}:
        return "waiting"
    return "stopped" if "winner" in record.read() else "paused"
