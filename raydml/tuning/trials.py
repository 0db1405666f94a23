"""A study's spec and one configuration in; the spec of a trial out, checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raydml.errors import SpecError
from raydml.parallel import unit
from raydml.spec import FoldSpec, JobSpec, TuneSpec
from raydml.specfile import parse_spec
from raydml.tuning.space import Configuration, corners, fields, grid_size, readable

# Fields that may change while a trial goes on from another one's checkpoint: they change no tensor of it.
PERTURBED = ("loss.", "train.optimizer.", "train.schedule.", "train.clip_norm", "data.augment.")


def tuned(spec: JobSpec) -> TuneSpec:
    """The section `tune`. Raises SpecError without one."""
    if spec.tune is None:
        raise SpecError("this spec has no section tune: write `tune: {space: {loss.margin: {uniform: [0.05, 0.5]}}}`")
    return spec.tune


def configured_spec(spec: JobSpec, configuration: Configuration) -> JobSpec:
    """The study's spec with the values of a configuration: what the winner is trained by.

    Raises SpecError with the values where no spec can be so.
    """
    values = fields(tuned(spec).space, configuration)
    document = spec.model_dump(mode="json", exclude={"tune"})
    written = spec.model_dump(mode="json", exclude={"tune"}, exclude_unset=True)
    for field, value in sorted(values.items(), key=lambda pair: not pair[0].endswith(".kind")):
        _set(document, written, field.split("."), value)
    try:
        return parse_spec(document)
    except SpecError as error:
        said = ", ".join(f"{name} = {value}" for name, value in readable(tuned(spec).space, configuration).items())
        raise SpecError(f"tune.space: no spec can be so: {error} (with {said})", **error.data) from None


def trial_spec(spec: JobSpec, configuration: Configuration, name: str, index: int) -> JobSpec:
    """The spec of one trial: it keeps a checkpoint of every evaluation, and has as few workers as it may.

    `index` of the configuration's trials: its seed is that many after the spec's, or the next one after all folds.
    """
    tune, chosen = tuned(spec), configured_spec(spec, configuration)
    folds = tune.models // tune.seeds
    seed, number = divmod(index, folds)
    data = chosen.data.model_copy(update={"fold": FoldSpec(number=number, of=folds)}) if folds > 1 else chosen.data
    workers, train = chosen.parallel.workers, chosen.train
    least = max(workers.min, unit(chosen))
    return chosen.model_copy(
        update={
            "name": name,
            "seed": chosen.seed + seed,
            "data": data,
            "index": None,
            "train": train.model_copy(update={"checkpoint_every": train.evaluate_every}),
            "parallel": chosen.parallel.model_copy(
                update={"workers": workers.model_copy(update={"min": least, "max": least})}
            ),
        }
    )


def check_space(spec: JobSpec) -> list[JobSpec]:
    """The specs at the corners of the space. Raises SpecError where one cannot be, or the study cannot."""
    tune = tuned(spec)
    if not spec.train.evaluate_every:
        raise SpecError("train.evaluate_every: 0 leaves nothing to compare trials by: evaluate, say every tenth part")
    if tune.protocol == "reality_check" and spec.data.fold is not None:
        raise SpecError("data.fold is what protocol: reality_check sets for each of its models: leave it out")
    found = [trial_spec(spec, corner, spec.name, 0) for corner in corners(tune.space, spec.seed)]
    for corner in found:
        if corner.parallel.strategy == "auto":
            raise SpecError("parallel.strategy: auto would choose for each trial by itself: name strategies, as choice")
    if tune.algorithm.kind == "grid" and grid_size(tune.space) > tune.trials:
        raise SpecError(
            f"the grid has {grid_size(tune.space)} configurations, and tune.trials is {tune.trials}: raise it to "
            f"{grid_size(tune.space)}, or take algorithm random"
        )
    if tune.algorithm.kind == "pbt":
        _check_perturbed(tune.space, spec, tune)
    return found


def _check_perturbed(space: Mapping[str, Any], spec: JobSpec, tune: TuneSpec) -> None:
    fixed = [field for field in space if not field.startswith(PERTURBED)]
    if fixed:
        raise SpecError(
            f"algorithm: pbt goes on from copied checkpoints, and {', '.join(fixed)} would not fit them: it varies "
            f"fields of {', '.join(part.rstrip('.') for part in PERTURBED)}"
        )
    every = getattr(tune.algorithm, "every", None) or spec.train.evaluate_every
    if every % spec.train.evaluate_every:
        raise SpecError(
            f"tune.algorithm.every = {every} is no multiple of train.evaluate_every = {spec.train.evaluate_every}: a "
            f"generation ends with an evaluation"
        )


def _set(document: dict[str, Any], written: Mapping[str, Any], keys: list[str], value: Any) -> None:
    """Write a value at a path. Another `kind` has other defaults: of its part only what was written stays."""
    for depth, key in enumerate(keys[:-1], start=1):
        inner = written.get(key)
        written = inner if isinstance(inner, Mapping) else {}
        if not isinstance(document.get(key), dict) or keys[depth:] == ["kind"]:
            document[key] = dict(written)
        document = document[key]
    document[keys[-1]] = value
