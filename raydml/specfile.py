"""A YAML or JSON file, a mapping or a JobSpec in; one checked JobSpec out, or every mistake at once with its line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from raydml.errors import SpecError
from raydml.spec import JobSpec

Keys = tuple[Any, ...]
_DEEPEST = 32  # levels of a spec that somebody sent


@dataclass(frozen=True)
class Problem:
    """One mistake: where it was written (`file:line` or `--set ...`), the dotted path, and what is wrong."""

    where: str
    path: str
    problem: str
    line: int | None = None

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.path, self.problem) if part)


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> JobSpec:
    """The spec in a file, changed by overrides such as `loss.margin=0.3` (the value is YAML).

    Raises SpecError with one line per mistake, and the same as a list in its `problems`.
    """
    source = _read(Path(path))
    changes = [_Override.parse(text) for text in overrides]
    for change in changes:
        change.apply(source.data)
    problems = [*source.duplicates(), *_check(source.data)]
    if problems:
        _refuse([_place(keys, problem, source, changes) for keys, problem in problems])
    return JobSpec.model_validate(source.data)


def read_spec(text: str, name: str = "spec", key: str | None = None) -> JobSpec:
    """The spec of a text that somebody sent, YAML or JSON, or the one that stands under a key of it.

    Raises SpecError like `load_spec`, with lines of the text. Takes no aliases: a few lines of them stand for as many
    values as one likes.
    """
    source = _parse(Path(name), text, is_json=text.lstrip().startswith("{"), loader=_NoAliases, key=key)
    problems = [*source.duplicates(), *_check(source.data)]
    if problems:
        _refuse([_place(keys, problem, source, []) for keys, problem in problems])
    return JobSpec.model_validate(source.data)


def parse_spec(spec: JobSpec | Mapping[str, Any]) -> JobSpec:
    """A JobSpec unchanged, or a mapping checked. Raises SpecError like `load_spec`, without lines."""
    if isinstance(spec, JobSpec):
        return spec
    if not isinstance(spec, Mapping):
        raise SpecError(f"a spec is a mapping or a JobSpec, not {type(spec).__name__}: load_spec reads a file")
    data = dict(spec)
    if problems := list(_check(data)):
        _refuse([Problem("", _dotted(keys), problem) for keys, problem in problems])
    return JobSpec.model_validate(data)


def _refuse(problems: list[Problem]) -> None:
    ordered = sorted(problems, key=lambda problem: (problem.line is None, problem.line or 0))
    raise SpecError("\n".join(map(str, ordered)), problems=[asdict(problem) for problem in ordered])


# --- where: the file and its lines -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """A parsed file: its values, and the YAML nodes that know their lines."""

    path: Path
    data: dict[str, Any]
    root: yaml.MappingNode
    repeated: tuple[tuple[Keys, int, int], ...]

    def line(self, keys: Keys) -> int:
        """Line of the deepest key of the path that the file has."""
        node: yaml.Node = self.root
        mark = node.start_mark
        for key in keys:
            child = _child(node, key)
            if child is None:
                break
            mark, node = child
        return int(mark.line) + 1

    def has(self, keys: Keys) -> bool:
        """Whether the path was written in the file."""
        node: yaml.Node = self.root
        for key in keys:
            child = _child(node, key)
            if child is None:
                return False
            node = child[1]
        return True

    def duplicates(self) -> Iterator[tuple[Keys, str]]:
        for keys, first, again in self.repeated:
            yield keys, f"written twice, in lines {first} and {again}"


def _child(node: yaml.Node, key: Any) -> tuple[yaml.Mark, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        pairs = [(name, value) for name, value in node.value if name.value == str(key)]
        return (pairs[-1][0].start_mark, pairs[-1][1]) if pairs else None
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        return node.value[key].start_mark, node.value[key]
    return None


def _read(path: Path) -> _Source:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    return _parse(path, text, is_json=path.suffix == ".json")


class _NoAliases(yaml.SafeLoader):  # type: ignore[misc]
    """For texts of strangers; ten thousand brackets, too, would keep it busy for minutes."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Raises ComposerError where the next node is an alias, or lies deeper than any option does."""
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not taken: write the value out", mark)
        if self.depth == _DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"more than {_DEEPEST} levels are not taken", mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _parse(
    path: Path, text: str, *, is_json: bool, loader: type[yaml.SafeLoader] = yaml.SafeLoader, key: str | None = None
) -> _Source:
    try:
        # JSON may indent by tabs, which YAML refuses; inside its strings a raw tab is not allowed anyway.
        reader = loader(text.replace("\t", " ") if is_json else text)
    except yaml.YAMLError as error:  # a character that no text may have
        raise SpecError(_syntax(path, error)) from None
    try:
        root = reader.get_single_node()
        if key is not None:
            root = (_child(root, key) or (None, None))[1]
        if not isinstance(root, yaml.MappingNode):
            raise SpecError(f"{path}:1: a spec is a mapping with the keys {', '.join(JobSpec.model_fields)}")
        repeated = tuple(_repeated(root, (), set()))
        document = json.loads(text) if is_json else reader.construct_document(root)
        data = document[key] if is_json and key is not None else document
    except yaml.YAMLError as error:
        raise SpecError(_syntax(path, error)) from None
    except json.JSONDecodeError as error:
        raise SpecError(f"{path}:{error.lineno}: is not valid JSON: {error.msg}") from None
    except ValueError as error:  # a date that is none, a number of thousands of digits
        raise SpecError(f"{path}: holds a value that cannot be read: {error}") from None
    except RecursionError:
        raise SpecError(f"{path}: is nested too deeply") from None
    finally:
        reader.dispose()
    return _Source(path, data, root, repeated)


def _syntax(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f":{mark.line + 1}" if mark else ""
    return f"{path}{line}: is not valid YAML: {getattr(error, 'problem', None) or error}"


def _repeated(node: yaml.Node, keys: Keys, seen: set[int]) -> Iterator[tuple[Keys, int, int]]:
    """Keys written more than once, with both lines; `seen` stops at anchors that contain themselves."""
    if id(node) in seen or not isinstance(node, yaml.MappingNode):
        return
    seen.add(id(node))
    first: dict[str, int] = {}
    for name, value in node.value:
        line = name.start_mark.line + 1
        if isinstance(name, yaml.ScalarNode) and first.setdefault(name.value, line) != line:
            yield (*keys, name.value), first[name.value], line
        yield from _repeated(value, (*keys, name.value), seen)


# --- overrides -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Override:
    """`loss.margin=0.3`: a path into the spec and a YAML value."""

    text: str
    keys: tuple[str, ...]
    value: Any

    @classmethod
    def parse(cls, text: str) -> _Override:
        path, equals, value = text.partition("=")
        keys = tuple(path.strip().split("."))
        if not equals or not all(keys):
            raise SpecError(f"--set {text}: write path=value, for example loss.margin=0.3")
        try:
            return cls(text, keys, yaml.safe_load(value))
        except yaml.YAMLError:
            raise SpecError(f"--set {text}: {value!r} is not a YAML value") from None

    def apply(self, data: dict[str, Any]) -> None:
        """Write the value into the document; an unknown path is found when the document is checked."""
        for depth, key in enumerate(self.keys[:-1], start=1):
            data = data.setdefault(key, {})
            if not isinstance(data, dict):
                raise SpecError(f"--set {self.text}: {'.'.join(self.keys[:depth])} is {data!r}, which has no parts")
        data[self.keys[-1]] = self.value


def _place(keys: Keys, problem: str, source: _Source, changes: list[_Override]) -> Problem:
    for change in reversed(changes):
        made = change.keys[: len(keys)] == keys and not source.has(keys)
        if made or keys[: len(change.keys)] == change.keys:
            return Problem(f"--set {change.text}", _dotted(keys), problem)
    line = source.line(keys)
    return Problem(f"{source.path}:{line}", _dotted(keys), problem, line)


# --- what: the mistakes ----------------------------------------------------------------------------------------------


def _check(data: Mapping[str, Any]) -> Iterator[tuple[Keys, str]]:
    """Every mistake as (path without the tags of unions, what is wrong)."""
    try:
        JobSpec.model_validate(data)
    except ValidationError as error:
        for mistake in error.errors(include_url=False):
            keys = _without_tags(data, mistake["loc"])
            yield keys, _explain(data, keys, dict(mistake))


def _without_tags(data: Any, location: Keys) -> Keys:
    """pydantic's location less the `kind` it adds after each choice: loss.triplet.margin -> loss.margin."""
    keys: list[Any] = []
    tagged = False
    for part in location:
        if isinstance(part, str) and part.startswith("="):  # a form that has no `kind`
            continue
        if not tagged and isinstance(data, Mapping) and data.get("kind") == part:
            tagged = True
            continue
        keys.append(part)
        data = data[part] if _has(data, part) else None
        tagged = False
    return tuple(keys)


def _has(data: Any, part: Any) -> bool:
    if isinstance(data, Mapping):
        return part in data
    return isinstance(data, Sequence) and isinstance(part, int) and part < len(data)


def _explain(data: Mapping[str, Any], keys: Keys, mistake: dict[str, Any]) -> str:
    context = mistake.get("ctx", {})
    match mistake["type"]:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return f"unknown key{_nearest(str(keys[-1]), _known_keys(data, keys[:-1]))}"
        case "union_tag_invalid":
            kinds = [kind.strip(" '=") for kind in context["expected_tags"].split(",")]
            if context["tag"].startswith("="):
                return f"is none of {', '.join(kinds)}"
            return f"unknown kind {context['tag']!r}{_nearest(str(context['tag']), kinds)}"
        case "union_tag_not_found":
            return "kind is missing"
        case "value_error":
            return str(context["error"])
    value = mistake.get("input")
    return f"{mistake['msg']}, got {value!r}" if isinstance(value, str | int | float | None) else str(mistake["msg"])


def _nearest(word: str, known: Sequence[str]) -> str:
    near = get_close_matches(word, known, n=1)
    if near:
        return f", did you mean {near[0]}?"
    return f"; known: {', '.join(known)}" if known else ""


def _known_keys(data: Any, keys: Keys) -> list[str]:
    """Keys that the spec has at this place."""
    annotation: Any = JobSpec
    for key in keys:
        parent = _chosen(annotation, data)
        if parent is None or key not in parent.model_fields:
            return []
        annotation, data = parent.model_fields[key].annotation, data[key]
    model = _chosen(annotation, data)
    return list(model.model_fields) if model else []


def _chosen(annotation: Any, data: Any) -> type[BaseModel] | None:
    """The model that the value is checked against: the only one, or the one of its `kind`."""
    models = list(_models(annotation))
    kind = data.get("kind") if isinstance(data, Mapping) else None
    named = [m for m in models if "kind" in m.model_fields and kind in get_args(m.model_fields["kind"].annotation)]
    return models[0] if len(models) == 1 else next(iter(named), None)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(getattr(annotation, "__value__", annotation)):
        yield from _models(inner)


def _dotted(keys: Keys) -> str:
    return ".".join(map(str, keys))
