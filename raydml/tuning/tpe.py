"""Configurations and their scores in, one that is likely better out: Optuna's tree-structured Parzen estimator.

Optuna's study is made anew for each question, from what is known: nothing is lost with the process that asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from raydml.spec import Choice, IntegerRange, LogRange
from raydml.tuning.algorithms import Known
from raydml.tuning.space import Configuration, Dimension, Space, configured, dimensions


@dataclass(frozen=True)
class Parzen:
    """TPE with conditional dimensions; with a cost, of two objectives."""

    space: Space
    seed: int
    startup: int
    costs: bool
    steps: int

    def ask(self, number: int, attempt: int, known: Sequence[Known]) -> Configuration:
        """Drawn by (seed, number, attempt) and what is known; those that still train push it elsewhere."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        seed = (self.seed * 1_000_003 + number * 101 + attempt) % 2**31
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.startup, constant_liar=not self.costs)
        directions: list[Literal["minimize", "maximize"]] = ["maximize", "minimize"] if self.costs else ["maximize"]
        study = optuna.create_study(sampler=sampler, directions=directions)
        study.add_trials([trial for each in known if (trial := self._frozen(each)) is not None])
        return _asked(self.space, study.ask())

    def _frozen(self, known: Known) -> FrozenTrial | None:
        """What Optuna learns from; with two objectives only of finished ones, for it knows no others."""
        found = dimensions(self.space, known.configuration)
        create = partial(
            optuna.trial.create_trial,
            params=dict(known.configuration),
            distributions={path: _distribution(dimension) for path, dimension in found.items()},
        )
        if known.finished:
            values = [known.scores[self.steps]] + ([known.cost or 0.0] if self.costs else [])
            return create(state=TrialState.COMPLETE, values=values)
        if self.costs:
            return None
        state = TrialState.PRUNED if known.stopped and known.scores else TrialState.RUNNING
        return create(state=state, intermediate_values=dict(known.scores))


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Choice):
        return CategoricalDistribution(list(range(len(dimension.choice))))
    if isinstance(dimension, IntegerRange):
        values = dimension.values()
        return IntDistribution(values[0], values[-1], step=dimension.step)
    if isinstance(dimension, LogRange):
        return FloatDistribution(*dimension.loguniform, log=True)
    return FloatDistribution(*dimension.uniform)


def _asked(space: Space, trial: Trial) -> Configuration:
    def answer(path: str, dimension: Dimension) -> int | float:
        found: int | float = trial._suggest(path, _distribution(dimension))
        return found

    return configured(space, answer)
