"""The committed openapi.json and the client say the same: each operation has a method, and each method an operation."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import raydml.client
from api.openapi import COMMITTED
from raydml.client.queries import ONE

SOURCES = sorted(Path(raydml.client.__file__).parent.glob("*.py"))
Operation = tuple[str, str]


def documented() -> set[Operation]:
    """(method, path) of every operation."""
    paths = json.loads(COMMITTED.read_bytes())["paths"]
    return {(method.upper(), path) for path, operations in paths.items() for method in operations}


def called(source: str) -> Iterator[Operation]:
    """(method, template) of each Call that a method of the client makes, its constants filled in."""
    tree = ast.parse(source)
    constants = {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Call":
            method, template = node.args[:2]
            assert isinstance(method, ast.Constant)
            yield str(method.value), eval(ast.unparse(template), dict(constants))


def operations() -> set[Operation]:
    """All of the client's."""
    found: set[Operation] = set()
    for path in SOURCES:
        source = path.read_text()
        if "from raydml.client.queries import ONE" in source:
            source = f"ONE = {ONE!r}\n{source}"
        found |= set(called(source))
    return found


def test_each_operation_has_a_method_of_the_client() -> None:
    missing = documented() - operations()
    assert not missing, f"the client lacks {sorted(missing)}"


def test_each_method_of_the_client_is_an_operation() -> None:
    unknown = operations() - documented()
    assert not unknown, f"the client asks for {sorted(unknown)}, which no server has"
