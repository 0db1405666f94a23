"""Runs on disk: found by name, read, resized; one process at a time drives one, and holds its lease."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from raydml.errors import ResourceError, RunError, RunExists, SpecError
from raydml.membership.budget import Budget, Limits, Spent
from raydml.models import load_model
from raydml.parallel import fit
from raydml.search import DATABASE, Collection
from raydml.specfile import load_spec
from raydml.training import history
from raydml.training.record import RunRecord


def home() -> Path:
    """Where runs, data and collections live: RAYDML_HOME, or ~/.raydml."""
    return Path(os.environ.get("RAYDML_HOME") or Path.home() / ".raydml").expanduser().resolve()


@dataclass(frozen=True)
class Run:
    """A run on disk; `module` is the user's own where it was trained with one."""

    folder: Path
    home: Path
    module: nn.Module | None = None

    @property
    def name(self) -> str:
        """Its name."""
        return self.folder.name

    @property
    def facts(self) -> dict[str, Any]:
        """Everything that run.json says now."""
        return RunRecord(self.folder).read()

    @property
    def state(self) -> str:
        """running, interrupted, failed or succeeded."""
        return str(self.facts["state"])

    @property
    def metrics(self) -> dict[str, float]:
        """Retrieval metrics of the exported model on the test split."""
        return dict(self.facts.get("metrics", {}))

    @property
    def intervals(self) -> dict[str, list[float]]:
        """[low, high] of each metric: percentiles of its mean over bootstrap resamples of the queries."""
        return dict(self.facts.get("intervals", {}))

    @property
    def baseline(self) -> dict[str, float]:
        """The same metrics of the raw inputs."""
        return dict(self.facts.get("baseline", {}))

    @property
    def model(self) -> Path:
        """The exported model's folder, for `load_model`."""
        return self.folder / "model"

    @property
    def sha256(self) -> str | None:
        """SHA-256 of the exported weights file."""
        return self.facts.get("sha256")

    @property
    def world_size_history(self) -> list[dict[str, int]]:
        """From which step on how many workers trained."""
        return history.world_sizes(RunRecord(self.folder).events())

    @property
    def events(self) -> list[dict[str, Any]]:
        """Changes of the group: time, step, cause, before, after, members, down (seconds), lost (steps), note.

        `samples_lost` are the rows of the global batches of the steps lost.
        """
        events = RunRecord(self.folder).events()
        size = load_spec(self.folder / "spec.yaml", []).batch.size if events else 0
        return [event | {"samples_lost": event["lost"] * size} for event in events]

    @property
    def exactness(self) -> str:
        """The level that the run kept: bitwise or exact."""
        return str(self.facts["exactness"])

    @property
    def warnings(self) -> list[dict[str, Any]]:
        """Rules of `watch` that were broken: step, rule, action and message of each."""
        return RunRecord(self.folder).warnings()

    @property
    def collection(self) -> Collection:
        """The collection that the run filled. Raises SpecError where its spec has no index."""
        name = self.facts.get("collection")
        if name is None:
            raise SpecError(
                f"run {self.name} filled no collection: add `index: {{collection: {self.name}}}` to its spec"
            )
        path = self.home / "collections" / name
        if self.module is None:
            return Collection.open(path, model=self.model)
        return Collection.open(path, model=load_model(self.model, module=self.module))

    def summary(self) -> dict[str, Any]:
        """The document that `raydml train --json` ends with."""
        return {
            "run": self.name,
            "state": self.state,
            "metrics": self.metrics,
            "intervals": self.intervals,
            "baseline": self.baseline,
            "model": str(self.model),
            "collection": self.facts.get("collection"),
            "sha256": self.sha256,
            "state_sha256": self.facts.get("state_sha256"),
            "world_size_history": self.world_size_history,
            "events": self.events,
            "exactness": self.exactness,
            "warnings": self.warnings,
        }


def find_run(name_or_path: str | Path, root: Path | None = None) -> Run:
    """A run by name under home, or by its folder. Raises RunError where there is none."""
    root = root or home()
    for folder in (root / "runs" / str(name_or_path), Path(name_or_path)):
        if (folder / "run.json").exists():
            return Run(folder.resolve(), root)
    known = sorted(path.parent.name for path in root.glob("runs/*/run.json"))
    raise RunError(f"there is no run {name_or_path} under {root / 'runs'}; there are {known or 'none'}")


def resize(name_or_path: str | Path, workers: int) -> dict[str, Any]:
    """Ask a run that is training for this many workers; it changes at a step boundary, once there is room for them.

    Returns run, workers (asked for) and before (now). It holds when the run is resumed, too, until the spec's workers
    change. Raises SpecError where the run's spec cannot have so many, RunError where nobody trains it, or where it was
    asked too often.
    """
    run = find_run(name_or_path)
    spec = load_spec(run.folder / "spec.yaml", [])
    allowed, usable = spec.parallel.workers, fit(spec, workers)
    if usable.reason is not None:
        raise SpecError(f"run {run.name} cannot have {workers} workers: {usable.reason}")
    if not allowed.min <= workers <= allowed.max:
        raise SpecError(
            f"run {run.name} cannot have {workers} workers: parallel.workers of its spec allows {allowed.min} to "
            f"{allowed.max}. Stop it, and resume it with --set parallel.workers.max=...: the bits stay the same"
        )
    facts = run.facts
    if facts["state"] != "running" or facts.get("trained") or not driven(run.folder):
        state = "trained already" if facts.get("trained") else facts["state"]
        raise RunError(
            f"run {run.name} is not training: it is {state if state != 'running' else 'left by a driver that died'}; "
            f"set parallel.workers when it is started"
        )
    record, now = RunRecord(run.folder), time.time()
    _check_rate([request["time"] for request in record.resizes()], spec.parallel.tolerate.resizes_per_hour, now)
    sizes = run.world_size_history
    record.request_resize(workers, (allowed.min, fit(spec, allowed.max).workers))
    return {"run": run.name, "workers": workers, "before": sizes[-1]["workers"] if sizes else None}


def _check_rate(times: Sequence[float], limit: int, now: float) -> None:
    """Raises RunError where one more request to resize is too many within an hour."""
    budget = Budget(Limits(resize=limit))
    for moment in times:
        budget.resized(moment)
    verdict = budget.resized(now)
    if isinstance(verdict, Spent):
        raise RunError(
            f"{verdict.limit} requests to resize came within an hour, and parallel.tolerate.resizes_per_hour is "
            f"{verdict.limit}: ask again in {verdict.again:.0f} s, or raise the limit"
        )


def open_collection(name_or_path: str | Path, root: Path | None = None) -> Collection:
    """A collection by name under home, or by its folder. Raises SpecError where there is none."""
    root = root or home()
    for folder in (root / "collections" / str(name_or_path), Path(name_or_path)):
        if (folder / DATABASE).exists():
            return Collection.open(folder)
    known = sorted(path.parent.name for path in root.glob(f"collections/*/{DATABASE}"))
    raise SpecError(f"there is no collection {name_or_path} under {root / 'collections'}; there are {known or 'none'}")


@contextlib.contextmanager
def owned(folder: Path, again: bool) -> Iterator[RunRecord]:
    """Hold the run's lease. Raises RunExists where it is finished or another process drives it."""
    with held(folder, "run") as record:
        if again and record.read():
            set_aside(folder)
            folder.mkdir()
        elif record.read().get("state") == "succeeded":
            raise RunExists(f"run {folder.name} is finished: take another name, or --again to start anew")
        yield record


@contextlib.contextmanager
def held(folder: Path, what: str, seconds: float = 0.0) -> Iterator[RunRecord]:
    """Hold the lease of a folder of a run, a trial or a study.

    Raises RunExists where another process still holds it after so many seconds.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lease = os.open(_lease(folder), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    except OSError as error:
        raise ResourceError(
            f"{folder} cannot be written: {error.strerror}. Set RAYDML_HOME to a folder that can."
        ) from error
    deadline = time.monotonic() + seconds
    try:
        while not _taken(lease):
            if time.monotonic() >= deadline:
                raise RunExists(f"{what} {folder.name} is being trained by another process: wait, or take another name")
            time.sleep(0.1)
        yield RunRecord(folder)
    finally:
        os.close(lease)


def _taken(lease: int) -> bool:
    try:
        fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lease(folder: Path) -> Path:
    """The file that a run's driver holds locked; beside the run's folder, which `again` renames."""
    return folder.parent / f".{folder.name}.lease"


def driven(folder: Path) -> bool:
    """Whether a living process drives the run of this folder: somebody holds its lease."""
    try:
        lease = os.open(_lease(folder), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _taken(lease)
    finally:
        os.close(lease)


def set_aside(folder: Path) -> None:
    """Keep what an earlier run left under the next free `name~1`."""
    number = next(n for n in range(1, 10**6) if not folder.with_name(f"{folder.name}~{n}").exists())
    folder.rename(folder.with_name(f"{folder.name}~{number}"))
