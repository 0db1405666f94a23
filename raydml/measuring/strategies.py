"""A job and its data -> what a step takes with each strategy on this machine, kept for `strategy: auto`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from raydml.data import Dataset, sampling_plan
from raydml.errors import ResourceError, SpecError
from raydml.files import scratch_folder
from raydml.measuring.processes import WARM, Cost, Work, run_trial
from raydml.measuring.trials import spec_of, trials_of
from raydml.models import EmbeddingModel, build_model, check_inputs
from raydml.parallel.estimate import candidates, facts_of, measured
from raydml.parallel.measured import Measured, Trial, hardware, key_of, remember
from raydml.parallel.memory import worker_share
from raydml.spec import CustomBackbone, JobSpec, MeasureSpec

ROWS = 256  # training items whose contents stand for all: reading data is not what is measured
Listen = Callable[[int, int, Trial], None]


def measure(
    spec: JobSpec, dataset: Dataset, home: Path, how: MeasureSpec | None = None, *, listen: Listen | None = None
) -> Measured:
    """Try every strategy that the cost model proposes, one after another, and keep the figures under `home`.

    Each trial trains for `how.steps` steps, after two that are not counted, in fresh processes of this machine which
    share its cores as the job's workers would. `listen(i, n, trial)` hears of the i-th of n before it begins. A trial
    that fails or takes too long says why and the others go on; ResourceError where all fail. SpecError and DataError
    as `plan`, and for a model of one's own.
    """
    how = how or MeasureSpec()
    if isinstance(spec.model.backbone, CustomBackbone):
        raise SpecError("model.backbone.kind: custom cannot be measured: strategies but ddp do not know its layers")
    sampling_plan(dataset, spec.batch, spec.seed)  # a batch that the data cannot fill is refused here
    most = min(spec.parallel.workers.max, spec.batch.virtual_workers)
    work = Work(spec, dataset.repeating(ROWS), None, how.steps)
    trials = _trials(spec, dataset, most, rounding=how.rounding)
    feasible = [trial for trial in trials if trial.failed is None]
    tried = [trial for trial in trials if trial.failed is not None]
    for number, trial in enumerate(feasible, start=1):
        if listen is not None:
            listen(number, len(feasible), trial)
        tried.append(_made(trial, work, how.seconds))
    ordered = sorted(tried, key=lambda trial: math.inf if trial.seconds is None else trial.seconds)
    found = Measured(key_of(spec, dataset), hardware(), most, spec.batch.size, tuple(ordered))
    if found.fastest is None:
        raise ResourceError(f"no strategy could be measured: {'; '.join(f'{one.name}: {one.failed}' for one in tried)}")
    remember(home, found)
    return found


def _trials(spec: JobSpec, dataset: Dataset, most: int, *, rounding: bool) -> list[Trial]:
    model: EmbeddingModel = build_model(spec.model, dataset.input_shape, spec.seed)
    check_inputs(spec.model, model, dataset.preprocessing)
    device = torch.device("cuda" if spec.parallel.device != "cpu" and torch.cuda.is_available() else "cpu")
    memory = measured(spec, model, dataset.preprocessing.type)
    found = candidates(facts_of(spec, model, memory, device, dataset.num_training_classes), most)
    return trials_of(spec, found, worker_share(spec, most, device), rounding=rounding)


def _made(trial: Trial, work: Work, limit: float) -> Trial:
    with scratch_folder("raydml-measuring-") as folder:
        job = replace(work, spec=spec_of(work.spec, trial, WARM + work.steps))
        found = run_trial(job, folder, limit)
    if isinstance(found, str):
        return replace(trial, failed=found)
    return _costing(trial, found)


def _costing(trial: Trial, costs: list[Cost]) -> Trial:
    """With the figures of the slowest and fullest worker."""
    sent = [cost.sent for cost in costs if cost.sent is not None]
    return replace(
        trial,
        seconds=max(cost.seconds for cost in costs),
        cpu=sum(cost.cpu for cost in costs),
        waited=max(cost.waited for cost in costs),
        memory=max(cost.memory for cost in costs),
        sent=max(sent, default=None),
    )
