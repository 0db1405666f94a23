"""Snapshots <-> a folder: immutable versions, one of them current, each file known by its SHA-256.

CURRENT                      number of the version and SHA-256 of its manifest, replaced in one step
LOCK                         held by the one writer
versions/000012/             manifest.json, vectors.npy (float32), rows.jsonl (id and payload of each row)
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from raydml.errors import CollectionError, ResourceError
from raydml.files import sha256_file, sweep, whole_folder, write_bytes, write_json
from raydml.search.items import Array
from raydml.search.snapshot import Facts, Snapshot

CURRENT, LOCK, VERSIONS, MANIFEST, VECTORS, ROWS = (
    "CURRENT", "LOCK", "versions", "manifest.json", "vectors.npy", "rows.jsonl",
)  # fmt: skip


def exists(folder: Path) -> bool:
    """Whether a collection is there; a folder with other things, or versions without CURRENT, is refused."""
    if (folder / CURRENT).exists():
        return True
    if not folder.exists():
        return False
    started = {LOCK, VERSIONS}  # all that a creation can leave when it is killed, with version 0 at most
    other = [path.name for path in folder.iterdir() if path.name not in started and not path.name.startswith(".tmp-")]
    if other:
        raise CollectionError(f"{folder} is not a collection: it holds {sorted(other)[:10]}; choose another folder")
    if any(path.name != "000000" for path in folder.glob(f"{VERSIONS}/[0-9]*")):
        raise _damaged(folder / CURRENT, "it is missing beside its versions")
    return False


def current(folder: Path) -> str:
    """The content of CURRENT, which changes with every commit."""
    try:
        return (folder / CURRENT).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError as error:
        raise _damaged(folder / CURRENT, "it is missing") from error


def read(folder: Path) -> Snapshot:
    """The current version, every file checked; CollectionError names the damaged file."""
    while True:
        pointer = current(folder)
        try:
            return _read_version(folder, pointer)
        except CollectionError:
            if pointer == current(folder):
                raise  # else a writer has switched and removed the version meanwhile


def commit(folder: Path, snapshot: Snapshot) -> None:
    """Make the snapshot current; durable when this returns, and as before when it raises. The caller holds the lock."""
    version = folder / VERSIONS / f"{snapshot.version:06d}"
    with whole_folder(version) as draft:
        np.save(draft / VECTORS, snapshot.vectors)
        lines = (json.dumps(pair) for pair in zip(snapshot.ids, snapshot.payloads, strict=True))
        (draft / ROWS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        digests = {name: sha256_file(draft / name) for name in (VECTORS, ROWS)}
        write_json(draft / MANIFEST, {**asdict(snapshot.facts), "count": len(snapshot.ids), "sha256": digests})
        pointer = f"{snapshot.version:06d} {sha256_file(draft / MANIFEST)}\n"
    write_bytes(folder / CURRENT, pointer.encode())
    _remove_other_versions(folder, version.name)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Be the one writer, or CollectionError at once; first removes what killed writers left."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ResourceError(f"cannot write in {folder}: {error.strerror}; correct its permissions") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CollectionError(f"{folder} has another writer at work: try again when it is done") from error
        sweep(folder)
        sweep(folder / VERSIONS)
        if (folder / CURRENT).exists():
            _remove_other_versions(folder, current(folder)[:6])
        yield
    finally:
        os.close(descriptor)


def _read_version(folder: Path, pointer: str) -> Snapshot:
    number, _, digest = pointer.strip().partition(" ")
    if not number.isdecimal() or len(digest) != 64:
        raise _damaged(folder / CURRENT, f"it says {pointer[:80]!r}")
    version = folder / VERSIONS / number
    manifest: dict[str, Any] = json.loads(_verified(version / MANIFEST, digest))
    vectors: Array = np.load(io.BytesIO(_verified(version / VECTORS, manifest["sha256"][VECTORS])), allow_pickle=False)
    rows = [json.loads(line) for line in _verified(version / ROWS, manifest["sha256"][ROWS]).splitlines()]
    facts = Facts(**{name: manifest[name] for name in ("dimension", "metric", "model_digest", "model_path")})
    return Snapshot(int(number), facts, vectors, tuple(row[0] for row in rows), tuple(row[1] for row in rows))


def _verified(path: Path, digest: str) -> bytes:
    """The file's bytes, which are the ones that were hashed."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _damaged(path, f"it cannot be read ({error.strerror})") from error
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise _damaged(path, f"its SHA-256 is {found[:12]}, and {digest[:12]} was written")
    return content


def _remove_other_versions(folder: Path, kept: str) -> None:
    for path in (folder / VERSIONS).glob("[0-9]*"):
        if path.name != kept:
            shutil.rmtree(path, ignore_errors=True)


def _damaged(path: Path, how: str) -> CollectionError:
    return CollectionError(
        f"the collection is damaged at {path}: {how}; restore the file from a copy, or index again", path=str(path)
    )
