"""A spec that came from elsewhere in; the same spec with its files found where they may be, or a refusal, out.

A spec is data. It names no code: a `custom` part needs a plug-in that the operator installed. It names no files but
those under the folders that the operator configured, and data sets that were uploaded (`dataset:ID`). What a section
`tune` varies is neither.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raydml.errors import SpecError
from raydml.plugins import installed

Keys = tuple[str, ...]
DATASET = "dataset:"

# Every place where a spec may name a file or folder; a test compares them with what `run` makes absolute.
PLACES: tuple[Keys, ...] = (
    ("data", "path"),
    ("data", "text", "path"),
    ("model", "backbone", "path"),
    ("batch", "sampling", "negatives"),
)
_PLUGGED: tuple[tuple[Keys, str], ...] = (
    (("data",), "datasets"),
    (("model", "backbone"), "models"),
    (("loss",), "losses"),
)


def confined(spec: Mapping[str, Any], roots: Sequence[Path], uploaded: Callable[[str], Path]) -> dict[str, Any]:
    """The spec with absolute paths, all of them under `roots`, links followed; `uploaded` finds a data set by its id.

    Raises SpecError with every path that is elsewhere, and every custom part that names no installed plug-in.
    """
    made = copy.deepcopy(dict(spec))
    problems = [*_unplugged(made), *_varied(made)]
    for keys in PLACES:
        holder = _at(made, keys[:-1])
        if holder is None or holder.get(keys[-1]) is None:
            continue
        try:
            holder[keys[-1]] = str(confined_path(holder[keys[-1]], roots, uploaded))
        except SpecError as error:
            problems.append(f"{'.'.join(keys)}: {error}")
    if problems:
        raise SpecError("\n".join(problems))
    return made


def confined_path(given: Any, roots: Sequence[Path], uploaded: Callable[[str], Path]) -> Path:
    """The one path, absolute, links followed. Raises SpecError where it is under none of the roots."""
    if not isinstance(given, str):
        raise SpecError(f"a path is a text, not {type(given).__name__}")
    if given.startswith(DATASET):
        return uploaded(given.removeprefix(DATASET))
    if "\0" in given:
        raise SpecError("a path holds no zero byte")
    for root in roots:
        try:
            path = (root / given).resolve()  # a relative path starts at a root
            there = path.exists()
        except (OSError, RuntimeError):  # links in a circle, names too long
            continue
        if there and path.is_relative_to(root.resolve()):
            return path
    raise SpecError(
        f"{given[:200]!r} is in none of the folders that this server reads data from: upload it (/v1/datasets), or "
        f"ask its operator to put it there (RAYDML_ROOTS)"
    )


def _unplugged(spec: Mapping[str, Any]) -> Iterator[str]:
    for keys, group in _PLUGGED:
        part = _at(spec, keys)
        if part is None or part.get("kind") != "custom":
            continue
        name, known = part.get("plugin"), installed(group)
        if name not in known:
            yield (
                f"{'.'.join(keys)}: custom needs `plugin: NAME`, a plug-in that the server's operator installed, not "
                f"{name!r}; there are {', '.join(known) or 'none'}"
            )


def _varied(spec: Mapping[str, Any]) -> Iterator[str]:
    """A space of a study names neither files nor code, at whatever depth: those are the same for all trials."""
    space = _at(spec, ("tune", "space")) or {}
    codes = [(*keys, "plugin") for keys, _ in _PLUGGED]
    for field, node in space.items():
        for keys, value in _values(tuple(field.split(".")), node):
            custom = value == "custom" and keys[-1] == "kind"
            if (keys in PLACES and value is not None) or keys in codes or custom:
                yield (
                    f"tune.space: {'.'.join(keys)} is {str(value)[:200]!r}: a server's sweep varies no files and no "
                    f"plug-ins: write them into the spec itself, and make a sweep for each"
                )


def _values(keys: Keys, node: Any) -> Iterator[tuple[Keys, Any]]:
    """Every value that a field, or a field within it, may take."""
    if isinstance(node, Mapping) and "choice" in node:
        for each in node["choice"]:
            yield from _values(keys, each)
    elif isinstance(node, Mapping):
        for name, inner in node.items():
            yield from _values((*keys, *name.split(".")), inner)
    else:
        yield keys, node


def _at(document: Mapping[str, Any], keys: Keys) -> dict[str, Any] | None:
    found: Any = document
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, dict) else None
