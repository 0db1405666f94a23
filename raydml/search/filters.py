"""A filter -> a test of payloads, and the ranges of indexed fields that can answer it.

{field: condition, ...}: every field's condition holds. A field is a path, "camera.name", through objects and lists.
    value, or a list of values      the field, or an element of it, is one of them
    {"gt": 1, "lte": 5}             a number (or a string) within the range: gt, gte, lt, lte
    {"exists": true}                the field is there
    {"equals": {...}}               any JSON value, whole
{"must": [filters], "should": [filters], "must_not": [filters]}: all hold, at least one holds, none holds.
{"nested": {"path": "objects", "filter": {...}}}: one and the same element of the field passes the filter.
A payload without the field fails its condition, and passes its opposite.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from raydml.errors import CollectionError
from raydml.search.items import Filter
from raydml.search.payload_index import Scalar, typed, values_at

Test = Callable[[Any], bool]

_RANGES: dict[str, Callable[[Any, Any], bool]] = {
    "gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le,
}  # fmt: skip
_GROUPS = ("must", "should", "must_not", "nested")
_DEPTH = 16  # filters within filters


@dataclass(frozen=True)
class Lookup:
    """What an index of the field can answer: one of these values, or (where there are none) all of these bounds."""

    field: str
    values: tuple[tuple[str, Scalar], ...]
    bounds: tuple[tuple[str, str, Scalar], ...] = ()  # operator, kind, value


@dataclass(frozen=True)
class Parsed:
    """`passes` decides; every passing payload is found by each lookup; `whole` when all the lookups together decide."""

    passes: Test
    lookups: tuple[Lookup, ...]
    whole: bool


def parse(filter: Filter, depth: int = 0) -> Parsed:
    """CollectionError, with the way out, where the filter is not one."""
    if not isinstance(filter, dict) or not all(isinstance(field, str) for field in filter):
        raise CollectionError(f"filter must be {{field: condition}} or {{'must': [...], ...}}, not {filter!r}")
    if depth > _DEPTH:
        raise CollectionError(f"filters are nested more than {_DEPTH} deep")
    if filter and set(filter) <= set(_GROUPS):
        parts = [_group(name, part, depth) for name, part in filter.items()]
    else:
        parts = [_condition(field, condition) for field, condition in filter.items()]
    return _all(parts)


def _all(parts: Iterable[Parsed]) -> Parsed:
    parts = list(parts)
    lookups = tuple(lookup for part in parts for lookup in part.lookups)
    return Parsed(lambda payload: all(part.passes(payload) for part in parts), lookups, all(p.whole for p in parts))


def _group(name: str, part: Any, depth: int) -> Parsed:
    if name == "nested":
        if not isinstance(part, dict) or set(part) != {"path", "filter"} or not isinstance(part["path"], str):
            raise CollectionError(f"nested must be {{'path': field, 'filter': {{...}}}}, not {part!r}")
        inner, path = parse(part["filter"], depth + 1).passes, part["path"]
        return Parsed(lambda payload: any(inner(one) for one in _objects(values_at(payload, path))), (), False)
    if not isinstance(part, list):
        raise CollectionError(f"{name} must be a list of filters, not {part!r}")
    parsed = [parse(one, depth + 1) for one in part]
    if name == "must":
        return _all(parsed)
    tests = [one.passes for one in parsed]
    if name == "should":
        return Parsed(lambda payload: not tests or any(test(payload) for test in tests), (), not tests)
    return Parsed(lambda payload: not any(test(payload) for test in tests), (), not tests)


def _condition(field: str, condition: Any) -> Parsed:
    if not isinstance(condition, dict):
        return _one_of(field, condition if isinstance(condition, list) else [condition])
    if condition and set(condition) <= set(_RANGES):
        return _within(field, condition)
    if set(condition) == {"exists"} and isinstance(condition["exists"], bool):
        wanted = condition["exists"]
        return Parsed(lambda payload: bool(values_at(payload, field)) == wanted, (), False)
    if set(condition) == {"equals"}:
        value = condition["equals"]
        return Parsed(lambda payload: any(_same(one, value) for one in values_at(payload, field)), (), False)
    raise CollectionError(
        f"filter: {field} has the condition {condition!r}; write a value, a list of values, "
        f"{{'gte': 1, 'lt': 5}}, {{'exists': true}}, or {{'equals': ...}} for an object"
    )


def _one_of(field: str, values: list[Any]) -> Parsed:
    plain = not any(isinstance(value, dict | list) for value in values)
    lookups = (Lookup(field, tuple(typed(value) for value in values)),) if plain and values else ()
    return Parsed(
        lambda payload: any(_same(one, value) for one in _elements(values_at(payload, field)) for value in values),
        lookups,
        bool(lookups),
    )


def _within(field: str, bounds: dict[str, Any]) -> Parsed:
    kinds = {typed(bound)[0] for bound in bounds.values() if not isinstance(bound, dict | list)}
    if len(kinds) != 1 or not kinds <= {"number", "string"} or any(bound != bound for bound in bounds.values()):
        raise CollectionError(f"filter: the range {bounds!r} of {field} must be of numbers, or of strings")
    (kind,) = kinds

    def inside(value: Any) -> bool:
        if isinstance(value, dict | list) or typed(value)[0] != kind:
            return False
        return all(_RANGES[name](value, bound) for name, bound in bounds.items())

    lookup = Lookup(field, (), tuple((name, *typed(bound)) for name, bound in bounds.items()))
    return Parsed(
        lambda payload: any(inside(one) for one in _elements(values_at(payload, field))),
        (lookup,),
        len(bounds) == 1,  # of a list, one element may hold the one bound and another element the other
    )


def _elements(values: Iterable[Any]) -> list[Any]:
    """The values, and the elements of those that are lists."""
    return [one for value in values for one in ([value, *value] if isinstance(value, list) else [value])]


def _objects(values: Iterable[Any]) -> list[Any]:
    """The values, with the elements of a list in its place."""
    return [one for value in values for one in (value if isinstance(value, list) else [value])]


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON, where true is not 1."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)
