"""A collection's folder -> a snapshot of it, another whole folder; and back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from raydml.errors import CollectionError
from raydml.files import whole_folder
from raydml.search import home
from raydml.search.database import connect, refuse_network, translating
from raydml.search.sealing import COMPACTING
from raydml.search.segments import SEGMENTS
from raydml.search.writer import writing


def snapshot(folder: Path, target: Path, patience: float) -> None:
    """Copy the newest committed state to `target`, which must not exist; no segment disappears meanwhile."""
    if target.exists():
        raise CollectionError(f"{target} exists: give a snapshot a folder of its own")
    with writing(folder, patience, COMPACTING), whole_folder(target) as draft, translating(folder):
        _copy(folder, draft)


def restore(source: Path, folder: Path, check: Callable[[], None]) -> None:
    """Copy a snapshot to `folder`, which must not hold a collection; `check` raises where the snapshot is damaged."""
    if not home.exists(source):
        raise CollectionError(f"{source} is not a snapshot of a collection")
    if home.exists(folder):
        raise CollectionError(f"{folder} holds a collection: restore to another folder, and remove or rename this one")
    check()
    refuse_network(folder)
    with whole_folder(folder) as draft, translating(source):
        _copy(source, draft)


def _copy(source: Path, draft: Path) -> None:
    """The database first: it names the segments to copy, which never change."""
    connection, copy = connect(source), connect(draft)
    try:
        connection.backup(copy)
        documents = copy.execute("SELECT document FROM segments").fetchall()
    finally:
        copy.close()
        connection.close()
    for (document,) in documents:
        name = json.loads(document)["name"]
        shutil.copytree(source / SEGMENTS / name, draft / SEGMENTS / name)
