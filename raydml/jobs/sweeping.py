"""A sweep is a job whose spec has a section `tune`: what it takes while it searches, and where its study lies.

What loads torch is imported where it is used: servers answer, and supervise, without it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydml.jobs.records import Job, Kind
from raydml.spec import JobSpec
from raydml.training.record import RunRecord
from raydml.tuning.admission import Need, need_of
from raydml.tuning.record import StudyRecord
from raydml.tuning.space import grid_size

if TYPE_CHECKING:
    from raydml.tuning.result import Row, StudyResult

MOST_AT_ONCE = 1024  # trials, as in `tune.concurrency`


@dataclass(frozen=True)
class Claim:
    """What a job may have: at least and at most so many workers, of so many CPUs; a sweep's are trials at once."""

    kind: Kind
    min: int
    max: int
    cpus: float


def claim_of(spec: JobSpec) -> Claim:
    """What the supervisor reckons with. Raises SpecError where the study cannot be."""
    if spec.tune is None:
        workers = spec.parallel.workers
        return Claim("job", workers.min, workers.max, workers.cpus)
    wanted = spec.tune.concurrency
    most = wanted or min(spec.tune.trials * spec.tune.models, MOST_AT_ONCE)
    return Claim("sweep", wanted or 1, most, trial_need(spec).cpus)


def trial_need(spec: JobSpec) -> Need:
    """What the largest trial takes, by CPUs: who has GPUs is known only where it runs. Raises SpecError."""
    from raydml.tuning.trials import check_space, tuned

    return need_of(check_space(spec), tuned(spec).gpu_share, 0.0)


def ordered(spec: dict[str, Any], claim: Claim, granted: int) -> dict[str, Any]:
    """The spec of an attempt: as many workers, or trials at once, as its claim and the room allow.

    The winner of a sweep trains in the room of the trials before it.
    """
    workers = spec["parallel"]["workers"]
    if claim.kind == "job":
        return spec | {"parallel": spec["parallel"] | {"workers": workers | {"min": claim.min, "max": claim.max}}}
    room = int(granted * claim.cpus / workers["cpus"] + 1e-9)
    most = max(workers["min"], min(workers["max"], room))
    return spec | {
        "parallel": spec["parallel"] | {"workers": workers | {"max": most}},
        "tune": spec["tune"] | {"concurrency": granted},
    }


def study_plan(spec: JobSpec) -> dict[str, Any]:
    """How many trials a study has at most, and what one takes. Raises SpecError where the study cannot be."""
    from raydml.tuning.trials import tuned

    tune, need = tuned(spec), trial_need(spec)
    grid = tune.algorithm.kind == "grid"
    configurations = grid_size(tune.space) if grid else tune.trials
    return {
        "configurations": configurations,
        "trials": configurations * tune.models,
        "steps": configurations * tune.models * spec.train.steps,
        "trial": {"takes": str(need), "cpus": need.cpus, "steps": spec.train.steps},
        "at_once": tune.concurrency,
    }


def leaderboard(home: Path, sweep: Job, limit: int) -> dict[str, Any]:
    """The configurations of a sweep so far, the best first, from the files of its study."""
    from raydml.tuning.result import read_result

    folder = study_folder(home, sweep.id)
    found = read_result(folder) if StudyRecord(folder).read() else None
    rows = found.rows if found else []
    best = found.best if found else None
    return {
        "state": sweep.state,
        "objective": sweep.spec["tune"]["objective"],
        "cost": sweep.spec["tune"]["cost"],
        "best": best.configuration if best else None,
        "verdict": found.verdict if found else None,
        "reality_check": found.facts.get("reality_check") if found else None,
        "total": len(rows),
        "items": [_told(found, row) for row in rows[:limit]] if found else [],
    }


def _told(study: StudyResult, row: Row) -> dict[str, Any]:
    """A row as a document, with how it compares with the best."""
    from raydml.tuning.significance import comparison

    by_seed = {str(seed): score for seed, score in row.by_seed.items()}
    return asdict(row) | {"by_seed": by_seed} | comparison(study.standings.get(row.configuration))


def study_folder(home: Path, job: str) -> Path:
    """Where the study of a sweep lies; its winner is the job's own run."""
    return home / "studies" / job


def request_stop(home: Path, job: str) -> None:
    """Ask the run of a job, or the study of a sweep and the run of its winner, to save checkpoints and stop."""
    RunRecord(home / "runs" / job).request_stop()
    study = study_folder(home, job)
    if study.is_dir():  # until then nothing has begun that could stop: it is asked again
        StudyRecord(study).request_stop()
