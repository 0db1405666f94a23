"""Two runs, or several seeds of two configurations -> what was gained on the same queries, and which changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from raydml.errors import RunError, SpecError
from raydml.evaluation.paired import Difference, Resampling, Values, differences, differences_over_seeds
from raydml.evaluation.results import Results, path_of, read_results
from raydml.runs import Run, find_run
from raydml.spec import CompareSpec, JobSpec
from raydml.specfile import load_spec

Runs = str | Path | Sequence[str | Path]
ASKED_ALIKE = {
    "protocol": "evaluate.protocol",
    "metric": "the distance of evaluate.metric",
    "split": "split",
    "queries": "queries (their ids, classes and contents)",
    "gallery": "gallery (its ids, classes and contents)",
}
_RIGHT, _SCORE = "precision_at_1", "map_at_r"


@dataclass(frozen=True)
class Changed:
    """A query whose first neighbour became right or wrong: its id, its class, and its metrics."""

    id: str
    label: str
    before: dict[str, float]
    after: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """What was gained from `before` to `after`, runs by name; `queries` are those with a positive.

    `fixed` and `broken` list some of `num_fixed` and `num_broken`, the largest change of MAP@R first. With several
    seeds a query's metrics are means over them, and it is right where it is in half of them or more.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    protocol: str
    metric: str
    queries: int
    gallery: int
    chance: str
    metrics: dict[str, Difference]
    num_fixed: int
    num_broken: int
    fixed: tuple[Changed, ...]
    broken: tuple[Changed, ...]
    how: CompareSpec
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = {
            name: {
                "before": one.before,
                "after": one.after,
                "gained": one.gained,
                "interval": [one.low, one.high],
                "significant": one.significant,
            }
            for name, one in self.metrics.items()
        }
        changed = {name: [vars(one) for one in getattr(self, name)] for name in ("fixed", "broken")}
        plain = ("protocol", "metric", "queries", "gallery", "chance", "num_fixed", "num_broken")
        return {
            "before": list(self.before),
            "after": list(self.after),
            **{name: getattr(self, name) for name in plain},
            "metrics": rows,
            **changed,
            "how": self.how.model_dump(exclude={"metric"}),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, eq=False)
class Member:
    """A run that was measured."""

    name: str
    spec: JobSpec
    results: Results


def compare(before: Runs, after: Runs, *, home: Path | None = None, **options: Any) -> Comparison:
    """Compare two runs by name or folder, or two lists of runs that differ in their seeds alone.

    Options are those of `raydml.spec.CompareSpec`: metric, over, confidence, repeats, seed, shown. Of one run each the
    interval says what other queries would give; of several seeds, what other seeds and queries would: paired by
    seed where both sides have the same seeds. SpecError where runs were not asked the same (protocol, distance,
    queries, gallery), RunError for one that is not there, or not measured.
    """
    try:
        how = CompareSpec(**options)
    except ValidationError as error:
        mistakes = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise SpecError(f"how to compare: {'; '.join(mistakes)}") from error
    old, new = ([(run.name, run) for run in _found(side, home)] for side in (before, after))
    return compare_runs(old, new, how)


def compare_runs(before: Sequence[tuple[str, Run]], after: Sequence[tuple[str, Run]], how: CompareSpec) -> Comparison:
    """As `compare`, of runs that are known, under names of the caller's."""
    if shared := {run.folder for _, run in before} & {run.folder for _, run in after}:
        raise SpecError(f"run {min(shared).name} stands on both sides: compare it with another one")
    old, new = ([_member(name, run, how) for name, run in side] for side in (before, after))
    _check_asked_alike([*old, *new])
    for side in (old, new):
        _check_seeds(side)
    first = old[0].results
    found, chance = _gains(old, new, how)
    num_fixed, fixed, num_broken, broken = _changed(old, new, how.shown)
    return Comparison(
        before=tuple(member.name for member in old),
        after=tuple(member.name for member in new),
        protocol=first.asked.protocol,
        metric=first.asked.metric,
        queries=int((~np.isnan(first.values[_SCORE])).sum()),
        gallery=first.asked.num_gallery,
        chance=chance,
        metrics=found,
        num_fixed=num_fixed,
        num_broken=num_broken,
        fixed=fixed,
        broken=broken,
        how=how,
        notes=tuple(_notes(old, new)),
    )


def _found(side: Runs, home: Path | None) -> list[Run]:
    names = [side] if isinstance(side, str | Path) else list(side)
    if not names:
        raise SpecError("a side without a run: give one, or several that differ in their seeds alone")
    return [find_run(name, home) for name in names]


def _member(name: str, run: Run, how: CompareSpec) -> Member:
    """Raises RunError where the run has no results by query of the model that it has now."""
    facts = run.facts
    if not facts.get("trained"):
        raise RunError(f"run {name} is {facts.get('state', 'not begun')} and was not measured yet: finish it first")
    spec = load_spec(run.folder / "spec.yaml", [])
    metric = how.metric or spec.evaluate.metric
    if not path_of(run.folder, metric).is_file():
        raise RunError(
            f"run {name} has no results by query with distance {metric}: measure it, raydml evaluate {name} "
            f"--metric {metric}"
        )
    results = read_results(run.folder, metric)
    if results.asked.model != facts.get("sha256"):
        raise RunError(f"the results of run {name} are of another model of it: measure it, raydml evaluate {name}")
    return Member(name, spec, results)


def _check_asked_alike(members: Sequence[Member]) -> None:
    """Raises SpecError for the first run that was asked something else than the first one, with the way out."""
    first = members[0]
    for other in members[1:]:
        for field, words in ASKED_ALIKE.items():
            mine, theirs = getattr(first.results.asked, field), getattr(other.results.asked, field)
            if mine != theirs:
                raise SpecError(
                    f"runs {first.name} and {other.name} cannot be compared: they differ in {words}, "
                    f"{mine[:12]} and {theirs[:12]}. {_way_out(field, first, other)}"
                )


def _way_out(field: str, first: Member, other: Member) -> str:
    if field == "metric":
        metric = first.results.asked.metric
        return (
            f"Measure both alike: raydml evaluate {other.name} --metric {metric}, then compare with --metric {metric}"
        )
    return "Train both, or raydml evaluate both, with the same test data"


def _check_seeds(side: Sequence[Member]) -> None:
    """Raises SpecError unless the runs of a side are one configuration with different seeds."""
    configurations = {member.spec.model_copy(update={"seed": 0}).digest() for member in side}
    if len(configurations) > 1:
        raise SpecError(
            f"{', '.join(member.name for member in side)} differ in more than their seeds: the runs of a side are one "
            f"configuration; compare others with one another"
        )
    seeds = [member.spec.seed for member in side]
    if len(set(seeds)) < len(seeds):
        raise SpecError(
            f"{', '.join(member.name for member in side)} have seeds {seeds}: a seed that comes twice says nothing new"
        )


def _gains(old: Sequence[Member], new: Sequence[Member], how: CompareSpec) -> tuple[dict[str, Difference], str]:
    """Of each metric that all have; and what its interval draws anew, in words."""
    first = old[0].results
    names = [name for name in first.values if all(name in member.results.values for member in (*old, *new))]
    classes = first.classes if how.over == "classes" else None
    resampling = Resampling(how.confidence, how.repeats, how.seed, classes)
    if len(old) == len(new) == 1:
        return differences(_values(old[0], names), _values(new[0], names), resampling), how.over
    old, new = (sorted(side, key=lambda member: member.spec.seed) for side in (old, new))
    paired = [member.spec.seed for member in old] == [member.spec.seed for member in new]
    before, after = ([_values(member, names) for member in side] for side in (old, new))
    found = differences_over_seeds(before, after, resampling, paired=paired)
    return found, f"{'pairs of seeds' if paired else 'seeds'} and {how.over}"


def _values(member: Member, names: Sequence[str]) -> Values:
    return {name: member.results.values[name] for name in names}


def _changed(
    old: Sequence[Member], new: Sequence[Member], shown: int
) -> tuple[int, tuple[Changed, ...], int, tuple[Changed, ...]]:
    """How many queries were fixed and broken, and those that changed most."""
    right, score = (
        [np.mean([member.results.values[name] for member in side], axis=0) for side in (old, new)]
        for name in (_RIGHT, _SCORE)
    )
    gained, first = score[1] - score[0], old[0].results
    found = []
    for rows in (
        np.flatnonzero((right[0] < 0.5) & (right[1] >= 0.5)),
        np.flatnonzero((right[0] >= 0.5) & (right[1] < 0.5)),
    ):
        most = rows[np.argsort(-np.abs(gained[rows]), kind="stable")][:shown]
        listed = tuple(
            Changed(
                first.ids[row],
                first.labels[row],
                *({_RIGHT: float(right[side][row]), _SCORE: float(score[side][row])} for side in (0, 1)),
            )
            for row in most
        )
        found += [(len(rows), listed)]
    return *found[0], *found[1]


def _notes(old: Sequence[Member], new: Sequence[Member]) -> list[str]:
    """What a reader should know before believing it."""
    notes = []
    if len(old) == 1:
        seeds = {member.spec.seed for member in (*old, *new)}
        how = "equal seeds" if len(seeds) == 1 else f"seeds {old[0].spec.seed} and {new[0].spec.seed}"
        notes.append(f"one run each, with {how}: what other seeds would give is not in the interval")
    if len({member.results.asked.trained_on for member in (*old, *new)}) > 1:
        notes.append("the runs saw other training data, or prepared it otherwise; the test items are the same")
    return notes
