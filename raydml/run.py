"""One spec from data to collection: checked, trained on Ray, measured, indexed. CLI and SDK call this."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import yaml
from pydantic import BaseModel
from torch import nn

from raydml.card import write_card
from raydml.data import Dataset, open_dataset, sampling_plan
from raydml.environment import describe_environment
from raydml.errors import CheckpointError, DataError, Interrupted, ResourceError, SpecError
from raydml.evaluation import baseline
from raydml.evaluation.results import write_results
from raydml.evaluation.scores import Metric, check_metric
from raydml.files import sweep, write_bytes, write_json
from raydml.indexing import check_collection, index_embeddings
from raydml.models import build_model, check_inputs, load_model
from raydml.parallel import Group, fit, unit
from raydml.parallel.estimate import resolved
from raydml.parallel.measured import key_of, recall
from raydml.plugins import plugged
from raydml.progress import Progress, Watch
from raydml.runs import Run, find_run, owned
from raydml.runs import home as default_home
from raydml.spec import CustomBackbone, CustomData, HardClasses, JobSpec, ManifestData
from raydml.specfile import load_spec, parse_spec
from raydml.tracking import Tracking, check_installed
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


def train(
    spec: JobSpec | Mapping[str, Any] | str | Path,
    *,
    dataset: object | None = None,
    model: nn.Module | None = None,
    again: bool = False,
    address: str | None = None,
    home: Path | str | None = None,
    collections: Path | None = None,
    listen: Callable[[Progress], None] | None = None,
) -> Run:
    """Train, measure and index one job; returns the finished run.

    An unfinished run of this name goes on from its last checkpoint; a finished one raises RunExists unless `again`.
    The collection is filled in the folder `collections`, by default home/collections.
    `dataset` is a torch map-style Dataset for `data: {kind: custom}`, `model` a module for `backbone: {kind: custom}`.
    A relative `data.path` starts at the current folder. `address` is a Ray cluster's; without one a local Ray is
    started and stopped. Ctrl-C saves a checkpoint and raises Interrupted; a second one stops at once. Raises
    SpecError, DataError or ResourceError before work starts.
    """
    checked = located(load_spec(spec, []) if isinstance(spec, (str, Path)) else parse_spec(spec))
    dataset, model = plugged_in(checked, dataset, model)
    root = Path(home).expanduser().resolve() if home else default_home()
    shelf = collections or root / "collections"
    with owned(root / "runs" / checked.name, again) as record:
        checked, items, why = _prepare(checked, root, shelf, record, dataset, model)
        resume = _resume(checked, record, items)
        _begin(checked, record, items, resume.step)
        if why is not None:
            record.change(strategy=why)
        job = Job(_at_most_usable(checked), record.folder, root, resume.step, dataset, model)
        with Tracking(checked, record, root):
            try:
                _train_on_ray(job, record, items, address, listen, resume)
                _finish(checked, record, items, shelf, model)
            except BaseException as error:
                state = "interrupted" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "failed"
                with contextlib.suppress(ResourceError):  # of a full disk: the first error matters
                    record.change(state=state, reason=str(error) or type(error).__name__)
                raise
    return Run(record.folder, root, model)


def plugged_in(
    spec: JobSpec, dataset: object | None, model: nn.Module | None
) -> tuple[object | None, nn.Module | None]:
    """What was handed over, and where nothing was, what the plug-ins make that the spec names."""
    data, backbone = spec.data, spec.model.backbone
    if dataset is None and isinstance(data, CustomData) and data.plugin is not None:
        dataset = plugged("datasets", data.plugin)
    if model is None and isinstance(backbone, CustomBackbone) and backbone.plugin is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)  # its weights, too, are the seed's
            model = plugged("models", backbone.plugin)
    return dataset, model


def check(
    spec: JobSpec,
    home: Path,
    collections: Path | None = None,
    *,
    dataset: object | None = None,
    model: nn.Module | None = None,
) -> None:
    """Raises what `train` would before it begins, for a run that there is not yet; leaves nothing but built-in data."""
    dataset, model = plugged_in(spec, dataset, model)
    shelf = collections or home / "collections"
    _prepare(located(spec), home, shelf, RunRecord(home / "runs" / ".none"), dataset, model)


def _at_most_usable(spec: JobSpec) -> JobSpec:
    """The spec with `workers.max` rounded down to what the strategy can use, and `min` raised to it."""
    wanted = spec.parallel.workers
    most = fit(spec, wanted.max).workers
    workers = wanted.model_copy(update={"max": most, "min": max(wanted.min, unit(spec))})
    return spec.model_copy(update={"parallel": spec.parallel.model_copy(update={"workers": workers})})


def located(spec: JobSpec) -> JobSpec:
    """The spec with all paths made absolute: workers run in folders of their own."""
    model = spec.model.model_copy(update={"backbone": _with_absolute_path(spec.model.backbone)})
    data = _with_absolute_path(spec.data)
    if isinstance(data, ManifestData) and data.text is not None:
        data = data.model_copy(update={"text": _with_absolute_path(data.text)})
    sampling = spec.batch.sampling
    if isinstance(sampling, HardClasses) and sampling.negatives is not None:
        path = str(Path(sampling.negatives).expanduser().absolute())
        sampling = sampling.model_copy(update={"negatives": path})
    batch = spec.batch.model_copy(update={"sampling": sampling})
    return spec.model_copy(update={"data": data, "model": model, "batch": batch})


def _with_absolute_path(part: Part) -> Part:
    path = getattr(part, "path", None)
    return part if path is None else part.model_copy(update={"path": str(Path(path).expanduser().absolute())})


def _prepare(
    spec: JobSpec, root: Path, shelf: Path, record: RunRecord, dataset: object | None, model: nn.Module | None
) -> tuple[JobSpec, Dataset, str | None]:
    """Everything that can be refused before workers start; where the spec says auto, one with a strategy, and why."""
    if isinstance(spec.data, CustomData) != (dataset is not None):
        raise SpecError(
            "data.kind: custom and raydml.train(dataset=...) belong together: give both or neither, or data.plugin"
        )
    check_installed(spec)
    sweep(record.folder)
    items = open_dataset(spec.data, root, custom=dataset)
    if not has_positives(items, "test"):
        raise DataError(
            f"the test split has {len(items.indices('test'))} items and no class of two, so nothing could be measured: "
            f"give more rows `split: test`, or no split at all"
        )
    built = build_model(spec.model, items.input_shape, spec.seed, custom=model)
    check_inputs(spec.model, built, items.preprocessing)
    why = None
    if spec.parallel.strategy == "auto":
        device = torch.device("cuda" if spec.parallel.device != "cpu" and torch.cuda.is_available() else "cpu")
        copied = build_model(spec.model, items.input_shape, spec.seed, custom=model)
        known = recall(root, key_of(spec, items))
        spec, why = resolved(spec, copied, items.preprocessing.type, device, items.num_training_classes, known)
    # One that trains nothing: plan, loss, strategy and optimiser refuse what they cannot do when they are built.
    Trainer(spec, items, built, Group(0, 1, spec.batch.virtual_workers), torch.device("cpu"))
    check_collection(spec, record, shelf)
    return spec, items, why


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
    step, damaged = checkpoints.whole_one(spec.name)
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


def _finish(spec: JobSpec, record: RunRecord, items: Dataset, shelf: Path, model: nn.Module | None) -> None:
    """The baseline, the model card, the collection, the state: each step may be repeated after a kill."""
    if spec.evaluate.baseline and "baseline" not in record.read():
        test = items.indices("test")
        record.change(baseline=measure_split(baseline(items.raw(test)), items, test, spec.evaluate.metric, ALONE))
    write_card(record.folder, spec, record.warnings(), history.summary(record.events()))
    if spec.index is not None:
        index_embeddings(spec, record, items, shelf)
    record.change(state="succeeded", finished=round(time.time(), 3))


def evaluate(
    name_or_path: str | Path,
    *,
    metric: Metric | None = None,
    dataset: object | None = None,
    model: nn.Module | None = None,
) -> dict[str, Any]:
    """Measure a run's exported model on its test split again, in this process; CheckpointError without a model.

    By another `metric` than the spec's where one is given. What each query got is kept, for `raydml.compare`.
    """
    run = find_run(name_or_path)
    spec = load_spec(run.folder / "spec.yaml", [])
    own = spec.evaluate
    wanted = own.model_copy(update={"metric": check_metric(metric or own.metric)})
    if not run.model.exists():
        raise CheckpointError(f"run {run.name} is {run.state} and has exported no model yet: finish it first")
    dataset, model = plugged_in(spec, dataset, model)
    embedder = load_model(run.model, module=model)
    items = open_dataset(spec.data, run.home, custom=dataset)
    test = items.indices("test")
    embeddings = embed_split(embedder.model, items, test, ALONE, spec.model.dimension)
    metrics, bounds, results = measure_test(embeddings, items, spec.model_copy(update={"evaluate": wanted}), ALONE)
    if results is not None:
        write_results(run.folder, results, model=run.sha256)
    intervals, beside = {name: list(bound) for name, bound in bounds.items()}, run.baseline if wanted == own else {}
    return {"run": run.name, "metrics": metrics, "intervals": intervals, "baseline": beside, "sha256": run.sha256}
