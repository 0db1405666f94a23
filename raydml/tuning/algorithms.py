"""What is known of the configurations so far in; the next configuration out, a pure function of it and of the seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from raydml.spec import Tpe, TuneSpec
from raydml.tuning.space import Configuration, Space, dimensions, draw, drawn, grid, moved


@dataclass(frozen=True)
class Known:
    """A configuration and what came of it: scores by step, and its cost where that is an objective.

    `finished` once it has taken all of its steps; one that is neither finished nor stopped is still training.
    """

    configuration: Configuration
    scores: Mapping[int, float]
    cost: float | None = None
    finished: bool = False
    stopped: bool = False


class Algorithm(Protocol):
    """Chooses configurations."""

    def ask(self, number: int, attempt: int, known: Sequence[Known]) -> Configuration:
        """The configuration of this number; `attempt` counts those of it that no spec can be."""


@dataclass(frozen=True)
class RandomDraws:
    """Each by itself."""

    space: Space
    seed: int

    def ask(self, number: int, attempt: int, known: Sequence[Known]) -> Configuration:
        """Drawn from (seed, number, attempt) alone."""
        return draw(self.space, np.random.default_rng((self.seed, number, attempt)))


class GridPoints:
    """All combinations, in order."""

    def __init__(self, space: Space) -> None:
        self.points = grid(space)

    def ask(self, number: int, attempt: int, known: Sequence[Known]) -> Configuration:
        """The point of that number."""
        return self.points[number]


def _random(space: Space, tune: TuneSpec, seed: int, steps: int) -> Algorithm:
    return RandomDraws(space, seed)


def _grid(space: Space, tune: TuneSpec, seed: int, steps: int) -> Algorithm:
    return GridPoints(space)


def _tpe(space: Space, tune: TuneSpec, seed: int, steps: int) -> Algorithm:
    from raydml.tuning.tpe import Parzen  # loads Optuna

    assert isinstance(tune.algorithm, Tpe)
    return Parzen(space, seed, tune.algorithm.startup, tune.cost is not None, steps)


ALGORITHMS: dict[str, Callable[[Space, TuneSpec, int, int], Algorithm]] = {
    "random": _random,
    "grid": _grid,
    "tpe": _tpe,
    "pbt": _random,  # of its first generation
}


def algorithm_of(tune: TuneSpec, seed: int, steps: int) -> Algorithm:
    """The algorithm of a study, by its kind."""
    return ALGORITHMS[tune.algorithm.kind](tune.space, tune, seed, steps)


def perturbed(
    space: Space, configuration: Configuration, resample: float, factor: float, random: np.random.Generator
) -> Configuration:
    """A copied configuration, each value drawn anew or moved; which part of the spec was chosen stays.

    An alternative that is a part of the spec brings other tensors, and a checkpoint would not fit them.
    """
    found = dict(configuration)
    for path, dimension in dimensions(space, configuration).items():
        if any(isinstance(value, dict | list) for value in getattr(dimension, "choice", ())):
            continue
        anew, up = random.random() < resample, bool(random.random() < 0.5)
        value = configuration[path]
        found[path] = drawn(dimension, random) if anew else moved(dimension, value, factor, up)
    return found
