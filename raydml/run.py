"""One spec from data to collection: checked, trained on Ray, measured, indexed. CLI and SDK call this."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import yaml
from pydantic import BaseModel
from torch import nn

from raydml.card import write_card
from raydml.data import Dataset, open_dataset, sampling_plan
from raydml.environment import describe_environment
from raydml.errors import (
    CheckpointError,
    DataError,
    Interrupted,
    ResourceError,
    RunError,
    RunExists,
    SpecError,
)
from raydml.evaluation import baseline
from raydml.files import sweep, write_bytes, write_json
from raydml.models import build_model, check_inputs, load_model
from raydml.parallel import Group, fit
from raydml.progress import Progress, Watch
from raydml.search import DATABASE, Collection, Facts
from raydml.spec import CustomData, HardClasses, JobSpec, ManifestData
from raydml.specfile import load_spec, parse_spec
from raydml.training import history
from raydml.training.checkpoints import Checkpoints
from raydml.training.evaluate import embed_split, has_positives, measure_split, measure_test
from raydml.training.loop import Trainer
from raydml.training.record import RunRecord
from raydml.training.worker import Job

if TYPE_CHECKING:
    from raydml.training.driver import Driver

Part = TypeVar("Part", bound=BaseModel)
ALONE = Group(rank=0, size=1, num_slices=1)


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


def train(
    spec: JobSpec | Mapping[str, Any] | str | Path,
    *,
    dataset: object | None = None,
    model: nn.Module | None = None,
    again: bool = False,
    address: str | None = None,
    home: Path | str | None = None,
    listen: Callable[[Progress], None] | None = None,
) -> Run:
    """Train, measure and index one job; returns the finished run.

    An unfinished run of this name goes on from its last checkpoint; a finished one raises RunExists unless `again`.
    `dataset` is a torch map-style Dataset for `data: {kind: custom}`, `model` a module for `backbone: {kind: custom}`.
    A relative `data.path` starts at the current folder. `address` is a Ray cluster's; without one a local Ray is
    started and stopped. Ctrl-C saves a checkpoint and raises Interrupted; a second one stops at once. Raises
    SpecError, DataError or ResourceError before work starts.
    """
    checked = _located(load_spec(spec, []) if isinstance(spec, (str, Path)) else parse_spec(spec))
    root = Path(home).expanduser().resolve() if home else globals()["home"]()
    with _owned(root / "runs" / checked.name, again) as record:
        items = _prepare(checked, root, record, dataset, model)
        resume = _resume(checked, record, items)
        _begin(checked, record, items, resume.step)
        job = Job(_at_most_usable(checked), record.folder, root, resume.step, dataset, model)
        try:
            _train_on_ray(job, record, items, address, listen, resume)
            _finish(checked, record, items, root, model)
        except BaseException as error:
            stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
            with contextlib.suppress(ResourceError):  # of a full disk: the first error matters
                record.change(state="interrupted" if stopped else "failed", reason=str(error) or type(error).__name__)
            raise
    return Run(record.folder, root, model)


def _at_most_usable(spec: JobSpec) -> JobSpec:
    """The spec with `workers.max` rounded down to what the strategy can use."""
    most = fit(spec, spec.parallel.workers.max).workers
    workers = spec.parallel.workers.model_copy(update={"max": most})
    return spec.model_copy(update={"parallel": spec.parallel.model_copy(update={"workers": workers})})


def _located(spec: JobSpec) -> JobSpec:
    """The spec with all paths made absolute: workers run in folders of their own."""
    model = spec.model.model_copy(update={"backbone": _with_absolute_path(spec.model.backbone)})
    data = _with_absolute_path(spec.data)
    if isinstance(data, ManifestData) and data.text is not None:
        data = data.model_copy(update={"text": _with_absolute_path(data.text)})
    return spec.model_copy(update={"data": data, "model": model})


def _with_absolute_path(part: Part) -> Part:
    path = getattr(part, "path", None)
    return part if path is None else part.model_copy(update={"path": str(Path(path).expanduser().absolute())})


@contextlib.contextmanager
def _owned(folder: Path, again: bool) -> Iterator[RunRecord]:
    """Hold the run's lease. Raises RunExists where it is finished or another process drives it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lease = os.open(_lease(folder), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    except OSError as error:
        raise ResourceError(
            f"{folder} cannot be written: {error.strerror}. Set RAYDML_HOME to a folder that can."
        ) from error
    try:
        try:
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunExists(
                f"run {folder.name} is being trained by another process: wait, or take another name"
            ) from error
        record = RunRecord(folder)
        if again and record.read():
            _set_aside(folder)
            folder.mkdir()
        elif record.read().get("state") == "succeeded":
            raise RunExists(f"run {folder.name} is finished: take another name, or --again to start anew")
        yield record
    finally:
        os.close(lease)


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
        fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lease)
    return False


def _set_aside(folder: Path) -> None:
    """Keep what an earlier run left under the next free `name~1`."""
    number = next(n for n in range(1, 10**6) if not folder.with_name(f"{folder.name}~{n}").exists())
    folder.rename(folder.with_name(f"{folder.name}~{number}"))


def _prepare(spec: JobSpec, root: Path, record: RunRecord, dataset: object | None, model: nn.Module | None) -> Dataset:
    """Everything that can be refused before workers start."""
    if isinstance(spec.data, CustomData) != (dataset is not None):
        raise SpecError("data.kind: custom and raydml.train(dataset=...) belong together: give both or neither")
    sweep(record.folder)
    items = open_dataset(spec.data, root, custom=dataset)
    if not has_positives(items, "test"):
        raise DataError(
            f"the test split has {len(items.indices('test'))} items and no class of two, so nothing could be measured: "
            f"give more rows `split: test`, or no split at all"
        )
    built = build_model(spec.model, items.input_shape, spec.seed, custom=model)
    check_inputs(spec.model, built, items.preprocessing)
    # One that trains nothing: plan, loss, strategy and optimiser refuse what they cannot do when they are built.
    Trainer(spec, items, built, Group(0, 1, spec.batch.virtual_workers), torch.device("cpu"))
    _check_collection(spec, record, root)
    return items


@dataclass(frozen=True)
class Resume:
    """Where a run goes on: the newest whole checkpoint, None without any, and what is wrong with newer ones.

    `lost` are the steps that were logged after it and have to be taken again.
    """

    step: int | None
    lost: int
    passed_over: tuple[str, ...]

    @property
    def note(self) -> str:
        """What a person should know of it."""
        return "; ".join(f"passed over: {problem}" for problem in self.passed_over)


def _resume(spec: JobSpec, record: RunRecord, items: Dataset) -> Resume:
    """What an earlier attempt left.

    Raises SpecError or DataError where spec or data are no longer the run's, CheckpointError where none is whole.
    """
    facts = record.read()
    if facts.get("spec_digest") not in (None, spec.digest()):
        raise SpecError(
            f"run {spec.name} began with another spec ({record.folder / 'spec.yaml'}): "
            f"take another name, or --again to start anew"
        )
    checkpoints = Checkpoints(record.folder / "checkpoints", spec.train.keep_last)
    checkpoints.sweep()
    if checkpoints.steps() and facts.get("fingerprint") not in (None, items.fingerprint):
        raise DataError("the data changed since this run began: restore it, or --again to start anew")
    step, damaged = checkpoints.newest_whole()
    if step is None and damaged:
        raise CheckpointError(
            f"run {spec.name} has no whole checkpoint: {'; '.join(damaged)}. Restore one, or --again to start anew"
        )
    return Resume(step, max(0, record.last_step() - (step or 0)), tuple(damaged))


def _begin(spec: JobSpec, record: RunRecord, items: Dataset, resume: int | None) -> None:
    record.clear_requests()
    record.forget_after(resume or 0)
    write_bytes(record.folder / "spec.yaml", yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False).encode())
    write_json(record.folder / "environment.json", describe_environment())
    write_json(record.folder / "data.json", {"fingerprint": items.fingerprint, "report": items.report.to_dict()})
    record.change(
        state="running",
        reason=None,
        name=spec.name,
        spec_digest=spec.digest(),
        fingerprint=items.fingerprint,
        exactness=spec.exactness,
        started=record.read().get("started", round(time.time(), 3)),
    )


def _train_on_ray(
    job: Job,
    record: RunRecord,
    items: Dataset,
    address: str | None,
    listen: Callable[[Progress], None] | None,
    resume: Resume,
) -> None:
    """One attempt, watched from here. Raises Interrupted, or the error that stopped it."""
    if record.read().get("trained"):
        return
    from raydml.training.driver import Driver
    from raydml.training.fleet.placement import cluster

    watch = Watch(record, job.spec, listen)
    watch.say("starting", job.resume or 0)
    with (
        cluster(job.spec, address) as placement,
        Driver(job, placement, partial(_batch, job.spec, items), resume.note, resume.lost) as driver,
    ):
        _drive(driver, record, watch)
        driver.check()
        if driver.interrupted:
            raise Interrupted(
                f"run {job.spec.name} was stopped after a checkpoint; the same command goes on from there"
            )


def _batch(spec: JobSpec, items: Dataset, step: int) -> list[str]:
    """Ids of the items of a step's batch; none where the plan learns what it draws from the model."""
    if isinstance(spec.batch.sampling, HardClasses):
        return []
    rows = items.indices("train")[sampling_plan(items, spec.batch, spec.seed).batch(step)]
    return [items.items.ids[row] for row in rows]


def _drive(driver: Driver, record: RunRecord, watch: Watch) -> None:
    """Until the run is over; the first Ctrl-C asks it to stop, a second one leaves at once."""
    asked = False
    while not driver.over:
        try:
            driver.tick()
            watch.tick()
            time.sleep(0.1)
        except KeyboardInterrupt:
            if asked:
                raise
            asked = True
            record.request_stop()
            watch.say("stopping", None)
    watch.tick()


def _finish(spec: JobSpec, record: RunRecord, items: Dataset, root: Path, model: nn.Module | None) -> None:
    """The baseline, the model card, the collection, the state: each step may be repeated after a kill."""
    if spec.evaluate.baseline and "baseline" not in record.read():
        test = items.indices("test")
        record.change(baseline=measure_split(baseline(items.raw(test)), items, test, spec.evaluate.metric, ALONE))
    write_card(record.folder, spec, record.warnings(), history.summary(record.events()))
    if spec.index is not None:
        _index(spec, record, items, root)
    record.change(state="succeeded", finished=round(time.time(), 3))


def _index(spec: JobSpec, record: RunRecord, items: Dataset, root: Path) -> None:
    """Fill the collection; one that an earlier model of this run filled is kept under the next free `name~1`."""
    assert spec.index is not None
    chosen = items.indices(spec.index.split)
    digest = record.read()["sha256"]
    path = root / "collections" / spec.index.collection
    if path.exists() and _opened_facts(path).model_digest != digest:
        _set_aside(path)
    collection = Collection.open(
        path, spec.model.dimension, spec.index.metric, model_digest=digest, model=record.folder / "model"
    )
    collection.upsert(
        ids=[items.items.ids[item] for item in chosen],
        vectors=np.load(record.folder / "embeddings" / "vectors.npy"),
        payloads=[items.items.payloads[item] for item in chosen],
        model_digest=digest,
    )
    record.change(collection=spec.index.collection)


def _check_collection(spec: JobSpec, record: RunRecord, root: Path) -> None:
    """Refuse to fill a collection of somebody else's: its vectors come from another model."""
    path = root / "collections" / spec.index.collection if spec.index else None
    if path is None or not path.exists():
        return
    source = _opened_facts(path).model_path
    if source is None or Path(source).parent != record.folder:
        raise SpecError(
            f"index.collection: {path} is filled already, by {source or 'hand'}: take another name or remove it"
        )


def _opened_facts(path: Path) -> Facts:
    """Of a collection that is closed again: an open one must not be renamed."""
    with Collection.open(path) as collection:
        return collection.facts


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

    Returns run, workers (asked for) and before (now). Raises SpecError where the run's spec cannot have so many,
    RunError where nobody trains it.
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
    sizes = run.world_size_history
    RunRecord(run.folder).request_resize(workers)
    return {"run": run.name, "workers": workers, "before": sizes[-1]["workers"] if sizes else None}


def evaluate(
    name_or_path: str | Path, *, dataset: object | None = None, model: nn.Module | None = None
) -> dict[str, Any]:
    """Measure a run's exported model on its test split again, in this process; CheckpointError without a model."""
    run = find_run(name_or_path)
    spec = load_spec(run.folder / "spec.yaml", [])
    if not run.model.exists():
        raise CheckpointError(f"run {run.name} is {run.state} and has exported no model yet: finish it first")
    embedder = load_model(run.model, module=model)
    items = open_dataset(spec.data, run.home, custom=dataset)
    test = items.indices("test")
    embeddings = embed_split(embedder.model, items, test, ALONE, spec.model.dimension)
    metrics, bounds = measure_test(embeddings, items, spec, ALONE)
    intervals = {name: list(bound) for name, bound in bounds.items()}
    return {"run": run.name, "metrics": metrics, "intervals": intervals, "baseline": run.baseline, "sha256": run.sha256}


def open_collection(name_or_path: str | Path, root: Path | None = None) -> Collection:
    """A collection by name under home, or by its folder. Raises SpecError where there is none."""
    root = root or home()
    for folder in (root / "collections" / str(name_or_path), Path(name_or_path)):
        if (folder / DATABASE).exists():
            return Collection.open(folder)
    known = sorted(path.parent.name for path in root.glob(f"collections/*/{DATABASE}"))
    raise SpecError(f"there is no collection {name_or_path} under {root / 'collections'}; there are {known or 'none'}")
