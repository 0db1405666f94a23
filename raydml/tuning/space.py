"""A space of spec fields and a choice for each of its dimensions in; values of the fields, draws, grids, corners out.

A configuration is a flat mapping from the path of a dimension to its value: a number, or for `choice` the index of the
alternative. Dimensions inside an alternative exist where it is chosen: `loss: 1`, then `loss.1.margin: 0.3`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from raydml.errors import SpecError
from raydml.spec import Choice, IntegerRange, LogRange, UniformRange

Space = Mapping[str, Any]
Configuration = dict[str, int | float]
Dimension = Choice | IntegerRange | LogRange | UniformRange
Ask = Callable[[str, Dimension], int | float]
Options = Callable[[str, Dimension], list[int | float]]

MOST_CORNERS = 4096  # that are all looked at; of more, those of each field by itself
DRAWS = 200  # that are looked at besides


def filled(node: Any, path: str, ask: Ask) -> Any:
    """A node of the space with a value for every dimension that `ask` is asked for, by path."""
    if isinstance(node, Choice):
        index = int(ask(path, node))
        return filled(node.choice[index], f"{path}.{index}", ask)
    if isinstance(node, IntegerRange | LogRange | UniformRange):
        return ask(path, node)
    if isinstance(node, Mapping):
        return {key: filled(value, f"{path}.{key}", ask) for key, value in node.items()}
    if isinstance(node, list):
        return [filled(value, f"{path}.{place}", ask) for place, value in enumerate(node)]
    return node


def configured(space: Space, ask: Ask) -> Configuration:
    """What `ask` answers for every dimension that there is under its answers, in the order of the space."""
    answers: Configuration = {}

    def noted(path: str, dimension: Dimension) -> int | float:
        answers[path] = ask(path, dimension)
        return answers[path]

    for field, domain in space.items():
        filled(domain, field, noted)
    return answers


def fields(space: Space, configuration: Configuration) -> dict[str, Any]:
    """The value of every field of the space: what a spec gets."""
    return {field: filled(domain, field, lambda path, _: configuration[path]) for field, domain in space.items()}


def dimensions(space: Space, configuration: Configuration) -> dict[str, Dimension]:
    """The dimensions that there are under a configuration, by path."""
    found: dict[str, Dimension] = {}

    def noted(path: str, dimension: Dimension) -> int | float:
        found[path] = dimension
        return configuration[path]

    configured(space, noted)
    return found


def readable(space: Space, configuration: Configuration) -> dict[str, Any]:
    """What varies, as a person would write it: `loss.kind`, `loss.margin`, parts flattened into dotted fields."""

    def flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                yield from flat(f"{name}.{key}", inner)
        else:
            yield name, value

    return dict(pair for field, value in fields(space, configuration).items() for pair in flat(field, value))


def drawn(dimension: Dimension, random: np.random.Generator) -> int | float:
    """One value of a dimension, by its law."""
    if isinstance(dimension, Choice):
        return int(random.integers(len(dimension.choice)))
    if isinstance(dimension, IntegerRange):
        return dimension.values()[int(random.integers(len(dimension.values())))]
    if isinstance(dimension, LogRange):
        low, high = dimension.loguniform
        return _within(math.exp(random.uniform(math.log(low), math.log(high))), low, high)
    return float(random.uniform(*dimension.uniform))


def draw(space: Space, random: np.random.Generator) -> Configuration:
    """A configuration, every dimension by its law."""
    return configured(space, lambda _, dimension: drawn(dimension, random))


def moved(dimension: Dimension, value: int | float, factor: float, up: bool) -> int | float:
    """A value near another one: multiplied or divided by the factor, or the next of a choice, within the bounds."""
    if isinstance(dimension, Choice):
        return min(max(int(value) + (1 if up else -1), 0), len(dimension.choice) - 1)
    if isinstance(dimension, IntegerRange):
        allowed = dimension.values()
        place = allowed.index(int(value))
        wanted = value * factor if up else value / factor
        nearest = min(range(len(allowed)), key=lambda index: abs(allowed[index] - wanted))
        other = place + (1 if up else -1) if nearest == place else nearest
        return allowed[min(max(other, 0), len(allowed) - 1)]
    low, high = dimension.loguniform if isinstance(dimension, LogRange) else dimension.uniform
    return _within(value * factor if up else value / factor, low, high)


def grid(space: Space) -> list[Configuration]:
    """All configurations of choices and whole numbers. SpecError where a dimension has no end of values."""
    return list(_combined(list(space.items()), _all_values))


def grid_size(space: Space) -> int:
    """How many there are."""
    return math.prod(_count(domain, field, _all_values) for field, domain in space.items())


def corners(space: Space, seed: int) -> list[Configuration]:
    """Every combination of bounds and alternatives, or where there are too many, those of each field and some draws."""
    if math.prod(_count(domain, field, _bounds) for field, domain in space.items()) <= MOST_CORNERS:
        return list(_combined(list(space.items()), _bounds))
    first: Configuration = next(_combined(list(space.items()), _bounds))
    found = []
    for field, domain in space.items():
        others = {path: value for path, value in first.items() if path != field and not path.startswith(f"{field}.")}
        found += [others | own for own in itertools.islice(_combinations(domain, field, _bounds), MOST_CORNERS)]
    random = np.random.default_rng(seed)
    return found + [draw(space, random) for _ in range(DRAWS)]


def _all_values(path: str, dimension: Dimension) -> list[int | float]:
    if isinstance(dimension, LogRange | UniformRange):
        raise SpecError(
            f"tune.space.{path}: a grid has no end of numbers to try: write them as a choice, or take algorithm random"
        )
    return list(range(len(dimension.choice)) if isinstance(dimension, Choice) else dimension.values())


def _bounds(path: str, dimension: Dimension) -> list[int | float]:
    if isinstance(dimension, Choice):
        return list(range(len(dimension.choice)))
    if isinstance(dimension, IntegerRange):
        return sorted({dimension.values()[0], dimension.values()[-1]})
    return sorted(set(dimension.loguniform if isinstance(dimension, LogRange) else dimension.uniform))


def _count(node: Any, path: str, options: Options) -> int:
    """How many combinations a node has, without making them."""
    if isinstance(node, Choice):
        return sum(_count(node.choice[int(index)], f"{path}.{index}", options) for index in options(path, node))
    if isinstance(node, IntegerRange | LogRange | UniformRange):
        return len(options(path, node))
    return math.prod(_count(inner, f"{path}.{name}", options) for name, inner in _inside(node))


def _combinations(node: Any, path: str, options: Options) -> Iterator[Configuration]:
    if isinstance(node, Choice):
        for index in options(path, node):
            for inner in _combinations(node.choice[int(index)], f"{path}.{index}", options):
                yield {path: index} | inner
    elif isinstance(node, IntegerRange | LogRange | UniformRange):
        yield from ({path: value} for value in options(path, node))
    else:
        yield from _combined([(f"{path}.{name}", inner) for name, inner in _inside(node)], options)


def _combined(named: list[tuple[str, Any]], options: Options) -> Iterator[Configuration]:
    if not named:
        yield {}
        return
    (path, node), *others = named
    for own in _combinations(node, path, options):
        for rest in _combined(others, options):
            yield own | rest


def _inside(node: Any) -> list[tuple[str, Any]]:
    if isinstance(node, Mapping):
        return [(str(key), value) for key, value in node.items()]
    return [(str(place), value) for place, value in enumerate(node)] if isinstance(node, list) else []


def _within(value: float, low: float, high: float) -> float:
    return float(min(max(value, low), high))
