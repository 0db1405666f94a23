"""A spec with a section `tune` in; a study of it, and the run of its winner, out. CLI, SDK and jobs call this."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import nn

from raydml import run as runs_of
from raydml.data import Dataset, open_dataset
from raydml.data.folds import folded
from raydml.errors import DataError, Interrupted, ResourceError, RunError, RunExists, SpecError
from raydml.files import digest_of_json, whole_folder, write_bytes
from raydml.run import located, plugged_in
from raydml.runs import find_run, held, set_aside
from raydml.runs import home as default_home
from raydml.spec import Choice, FoldSpec, JobSpec
from raydml.specfile import load_spec, parse_spec
from raydml.training.evaluate import has_positives
from raydml.tuning.admission import Need, admitted, need_of
from raydml.tuning.folds import reality_check
from raydml.tuning.planner import Planner
from raydml.tuning.record import StudyRecord, trial_names
from raydml.tuning.result import StudyResult, read_result
from raydml.tuning.space import dimensions, draw
from raydml.tuning.table import write_table
from raydml.tuning.trial import Training
from raydml.tuning.trials import check_space, configured_spec, trial_spec, tuned

Listener = Callable[[StudyResult], None]
LOOKS = 12  # draws, of which one of each combination of choices is tried on the data before a study begins
SECONDS_BETWEEN_LOOKS = 1.0


def tune(
    spec: JobSpec | Mapping[str, Any] | str | Path,
    *,
    dataset: object | None = None,
    model: nn.Module | None = None,
    again: bool = False,
    address: str | None = None,
    home: Path | str | None = None,
    collections: Path | None = None,
    listen: Listener | None = None,
) -> StudyResult:
    """Search the space of the spec's section `tune`, and train, measure and index the winner, as a run of its name.

    The arguments are those of `raydml.train`. Trials see training and validation classes only; the test classes are
    measured once, by the winner's run. An unfinished study of this name goes on with every trial where it was, a
    finished one raises RunExists unless `again`. `listen` hears of the study as it goes on, about once a second.
    Ctrl-C saves a checkpoint of each running trial and raises Interrupted; a second one stops at once. Raises
    SpecError, DataError or ResourceError, with the arithmetic, before a trial starts.
    """
    from raydml.tuning.runner import room_to_come

    checked = located(load_spec(spec, []) if isinstance(spec, (str, Path)) else parse_spec(spec))
    root = Path(home).expanduser().resolve() if home else default_home()
    folder = root / "studies" / checked.name
    corners = check_space(checked)
    with held(folder, "study"):
        record = StudyRecord(folder)
        _begin(record, checked, root, again)
        dataset, model = plugged_in(checked, dataset, model)
        if not record.read():
            check(checked, root, collections, dataset=dataset, model=model)
        to_come = room_to_come(address)
        if to_come is not None:  # refused before a Ray is started: that takes seconds
            _admit(checked, corners, to_come)
        began = _started(record, checked)
        training = Training(root, dataset, model)
        try:
            from raydml.training.fleet.placement import cluster

            with cluster(checked, address):
                search(checked, record, training, corners, began, listen)
                _crown(checked, record, training, partial(_train, training, address, collections))
        except BaseException as error:
            stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
            with contextlib.suppress(ResourceError):  # of a full disk: the first error matters
                _ended(record, began, "interrupted" if stopped else "failed", str(error) or type(error).__name__)
            raise
        _ended(record, began, "succeeded", None)
    return read_result(folder)


def check(
    spec: JobSpec,
    home: Path,
    collections: Path | None = None,
    *,
    dataset: object | None = None,
    model: nn.Module | None = None,
) -> None:
    """Raises what `tune` would before a study begins, but for the room that it needs."""
    spec = located(spec)
    check_space(spec)
    dataset, model = plugged_in(spec, dataset, model)
    runs_of.check(spec, home, collections, dataset=dataset, model=model)
    _check_comparable(spec, open_dataset(spec.data, home, custom=dataset))
    random, space, seen = np.random.default_rng(spec.seed), tuned(spec).space, set()
    for _ in range(LOOKS):
        values = draw(space, random)
        chosen = tuple(values[path] for path, each in dimensions(space, values).items() if isinstance(each, Choice))
        if chosen in seen:
            continue
        seen.add(chosen)
        try:
            drawn = trial_spec(spec, values, spec.name, tuned(spec).models - 1)  # its fold trains on the fewest classes
        except SpecError:
            continue  # another one is drawn in its place; what no spec can be at the corners was refused before
        runs_of.check(drawn, home, collections, dataset=dataset, model=model)


def _check_comparable(spec: JobSpec, items: Dataset) -> None:
    """Raises DataError where some of the classes that trials are compared by have no two items of one of them."""
    tune, advice = tuned(spec), "give more rows `split: validation`"
    divided = [items]
    if tune.protocol == "reality_check":
        divided = [folded(items, FoldSpec(number=number, of=tune.folds)) for number in range(tune.folds)]
        advice = "take fewer folds"
    for each in divided:
        if not has_positives(each, "validation"):
            raise DataError(
                f"the validation split has {len(each.indices('validation'))} items and no class of two, so trials "
                f"could not be compared without the test classes: {advice}"
            )


def search(
    spec: JobSpec,
    record: StudyRecord,
    work: Callable[[Path, int], None],
    corners: list[JobSpec],
    began: float,
    listen: Listener | None = None,
    **options: Any,
) -> None:
    """Do all work of a study in the Ray that is connected. Raises Interrupted where it was stopped on request."""
    from raydml.tuning.runner import room, run

    need, concurrency = _admit(spec, corners, room())
    planner = Planner(spec, record, concurrency, **options)
    watch = _Watch(record, planner, began, listen)
    run(planner, work, need, watch.turn)
    if record.stop_requested():
        raise Interrupted(f"study {spec.name} was stopped, its trials kept; the same command goes on from there")


def _admit(spec: JobSpec, corners: list[JobSpec], room: tuple[float, float]) -> tuple[Need, int]:
    """What a trial takes, and how many run at once. Raises ResourceError, with the arithmetic, where none can."""
    need = need_of(corners, tuned(spec).gpu_share, room[1])
    return need, admitted(need, *room, tuned(spec).concurrency)


class _Watch:
    """Passes requests and the budget on to the planner, and tells the listener."""

    def __init__(self, record: StudyRecord, planner: Planner, began: float, listen: Listener | None) -> None:
        self._record, self._planner, self._listen = record, planner, listen
        self._began, self._told = began, 0.0
        self._budget = planner.tune.budget_seconds

    def turn(self) -> None:
        """A few times a second."""
        now = time.time()
        if self._record.stop_requested():
            self._planner.over = True
        if self._budget is not None and now - self._began > self._budget and not self._planner.over:
            self._planner.over = True
            self._record.log("budget", seconds=round(now - self._began, 1))
        if self._listen is not None and now >= self._told + SECONDS_BETWEEN_LOOKS:
            self._told = now
            self._listen(read_result(self._record.folder))


def _begin(record: StudyRecord, spec: JobSpec, root: Path, again: bool) -> None:
    """Refuse a name that is taken; with `again`, keep what there was under another name."""
    facts, run = record.read(), root / "runs" / spec.name
    if again:
        for folder in (record.folder, run):
            if folder.exists() and any(folder.iterdir()):
                set_aside(folder)
        record.folder.mkdir(exist_ok=True)
    elif facts.get("state") == "succeeded":
        raise RunExists(f"study {spec.name} is finished: take another name, or --again to start anew")
    elif not facts and (run / "run.json").exists():
        raise RunExists(f"there is a run {spec.name}, and a study's winner is the run of its name: take another name")
    elif facts and facts["digest"] != study_digest(spec):
        raise SpecError(
            f"study {spec.name} began with another spec ({record.folder / 'spec.yaml'}): take another name, or --again "
            f"to start anew"
        )


def study_digest(spec: JobSpec) -> str:
    """SHA-256 of all that decides which trials there are and what they score; not how many run at once, or how long."""
    tune = tuned(spec).model_dump(mode="json", exclude={"concurrency", "budget_seconds", "gpu_share"})
    return digest_of_json([spec.digest(), tune, spec.train.evaluate_every, spec.evaluate.metric])


def _started(record: StudyRecord, spec: JobSpec) -> float:
    """Write down that it runs; when it would have begun, had there been no pause between its attempts."""
    record.clear_requests()
    text = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False)
    write_bytes(record.folder / "spec.yaml", text.encode())
    now = time.time()
    facts = record.read()
    record.change(
        state="running",
        reason=None,
        name=spec.name,
        digest=study_digest(spec),
        started=facts.get("started", round(now, 3)),
        seconds=facts.get("seconds", 0.0),
    )
    return now - float(facts.get("seconds", 0.0))


def _ended(record: StudyRecord, began: float, state: str, reason: str | None) -> None:
    """Write the results so far, and what state it is in: the last word."""
    result = read_result(record.folder)
    write_table(result, record.folder / "results.parquet")
    now = time.time()
    finished = {"finished": round(now, 3)} if state == "succeeded" else {}
    record.change(state=state, reason=reason, seconds=round(now - began, 3), **finished)


def _crown(
    spec: JobSpec, record: StudyRecord, training: Training, train: Callable[[JobSpec, Path | None], None]
) -> None:
    """Make the best configuration the run of the study's name: from its checkpoint to test classes and collection.

    A model of folds is none of the spec's own classes: after theirs are measured, the run is trained from its start.
    """
    winner = read_result(record.folder).best
    if winner is None:
        failed = [state.reason for state in map(record.trial, _names(record)) if state.reason]
        raise RunError(f"no trial of study {spec.name} was ever evaluated: {failed[0] if failed else 'none ran'}")
    chosen = configured_spec(spec, record.configurations()[winner.configuration].values)
    text = yaml.safe_dump(chosen.model_dump(mode="json", exclude={"tune"}), sort_keys=False)
    write_bytes(record.folder / "best.yaml", text.encode())
    if "winner" not in record.read():
        record.log("winner", configuration=winner.configuration, score=winner.score, step=winner.step)
    record.change(winner=winner.configuration, run=spec.name)
    folders = [record.trial_folder(name) for name in trial_names(winner.configuration, tuned(spec).models)]
    folds = tuned(spec).models // tuned(spec).seeds
    if folds > 1 and "reality_check" not in record.read():
        record.change(reality_check=reality_check(folders[:folds], training))
    train(chosen, folders[0] if folds == 1 else None)


def _names(record: StudyRecord) -> list[str]:
    return sorted(path.name for path in record.folder.glob("trials/*") if path.is_dir())


def _train(
    training: Training, address: str | None, collections: Path | None, spec: JobSpec, trial: Path | None
) -> None:
    """The winner as an ordinary run: it goes on from its trial's checkpoints, which may be of the last step."""
    folder = training.home / "runs" / spec.name
    if trial is not None and not (folder / "run.json").exists():
        with whole_folder(folder / "checkpoints") as draft:
            for path in sorted((trial / "checkpoints").glob("step-*")):
                shutil.copytree(path, draft / path.name)
        shutil.copy(trial / "metrics.jsonl", folder / "metrics.jsonl")
    elif (folder / "run.json").exists() and find_run(folder).state == "succeeded":
        return
    runs_of.train(
        spec,
        dataset=training.dataset,
        model=training.model,
        address=address,
        home=training.home,
        collections=collections,
    )
