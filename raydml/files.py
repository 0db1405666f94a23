"""Bytes, JSON or a folder in; on disk they appear whole and durable, or not at all.

Everything is written beside its destination under a name that starts with `.tmp-`, synced, renamed, and the parent
folder synced. The writer holds a lock (flock) on what it writes, so that `sweep` can tell the leftovers of a killed
writer from the work of a living one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raydml.errors import ResourceError

TEMPORARY = ".tmp-"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "glusterfs", "gpfs", "beegfs"}
    | {"fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.ceph", "fuse.juicefs"}
)
_CHUNK = 1 << 20  # bytes read at a time when hashing
# A disk that is full or read-only, and storage that does not answer.
_DISK_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT}
)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace the file `path` by `data`; missing parent folders are made. ResourceError leaves the old content."""
    path = Path(path)
    with _refusing(path):
        _make_folder(path.parent)
        temporary = _beside(path)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with open(descriptor, "wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_json(path: str | Path, value: Any) -> None:
    """Replace the file `path` by `value` as indented JSON; NaN and infinities are a ValueError, before any write."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode())


def append_line(path: str | Path, line: str, *, durable: bool = False) -> None:
    """Add one line to a file for its readers to follow; `durable` returns once it is on the disk.

    A kill may cut the last line short: the next one then begins on a line of its own, for readers to pass over the
    other. ResourceError as `write_bytes`; what was written of the line is taken back.
    """
    with _refusing(Path(path)), open(path, "a+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        cut = end > 0 and os.pread(file.fileno(), 1, end - 1) != b"\n"
        rest = ("\n" * cut + line + "\n").encode()
        try:
            while rest:
                rest = rest[file.write(rest) :]
            if durable:
                os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise


def remove_folder(path: Path) -> None:
    """A folder disappears whole: it takes a `.tmp-` name and is removed, by `sweep` if a kill comes between."""
    temporary = _beside(path)
    os.rename(path, temporary)
    shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes `path` when the block ends, and disappears when it raises.

    An existing `path` is replaced in one step (renameat2 with RENAME_EXCHANGE). Where the file system cannot do that,
    the old folder is moved aside first, and a kill between the two renames leaves it under its `.tmp-` name.
    A full or unwritable disk is a ResourceError; other errors of the block pass unchanged.
    """
    path = Path(path)
    with _refusing(path):
        _make_folder(path.parent)
        temporary = _beside(path)
        temporary.mkdir()
        descriptor = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with _refusing(path, only=_DISK_ERRORS):
            yield temporary
        with _refusing(path):
            _sync_tree(temporary)
            _move_onto(temporary, path)
            sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(descriptor)


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """Yield an empty folder of the system's temporary one, removed at the end; those of killed processes go first."""
    sweep(tempfile.gettempdir(), f"{prefix}*")
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        with _locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: str | Path, pattern: str = f"{TEMPORARY}*") -> list[Path]:
    """Remove what killed writers left in `folder` (not below it) under such names; gives the paths removed."""
    removed = []
    for path in sorted(Path(folder).glob(pattern)):
        with suppress(OSError), _locked(path):  # gone meanwhile, in use, or somebody else's
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            removed.append(path)
    return removed


def sha256_file(path: str | Path) -> str:
    """SHA-256 of the file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def digest_of_json(value: Any) -> str:
    """SHA-256 of a value as JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def network_file_system(folder: Path, mounts: str | None = None) -> str | None:
    """Which network file system the folder lies on, if it is one: its locks cannot be trusted between machines.

    `mounts` is the text of /proc/self/mounts; without that file (not Linux) nobody can tell.
    """
    source = Path("/proc/self/mounts")
    if mounts is None and not source.exists():
        return None
    lines = [line.split() for line in (mounts if mounts is not None else source.read_text()).splitlines()]
    absolute = folder.absolute().resolve()
    holding = [(len(fields[1]), fields[2]) for fields in lines if absolute.is_relative_to(_unescaped(fields[1]))]
    kind = max(holding)[1] if holding else ""
    return kind if kind in _NETWORK else None


def sync_folder(folder: str | Path) -> None:
    """Make renames and new names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    return path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"  # without the name, which may already be as long as allowed


def _unescaped(path: str) -> Path:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\134", "\\")):
        path = path.replace(code, character)
    return Path(path)


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            sync_folder(Path(parent) / name)  # fsync of a file needs no more than a read-only descriptor either
        sync_folder(parent)


def _move_onto(temporary: Path, path: Path) -> None:
    """Rename the folder `temporary` to `path`; an old folder there ends up at `temporary`."""
    if not path.is_dir():
        os.rename(temporary, path)
    elif not _exchange(temporary, path):
        aside = _beside(path)
        os.rename(path, aside)
        os.rename(temporary, path)
        os.rename(aside, temporary)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names atomically; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(other))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _refusing(path: Path, only: frozenset[int] | None = None) -> Iterator[None]:
    """Turn an OSError (of the codes `only`, if given) into a ResourceError that shows the path and the free space."""
    try:
        yield
    except OSError as error:
        if only is not None and error.errno not in only:
            raise
        free = _free_bytes(path)
        raise ResourceError(
            f"cannot write {path}: {error.strerror}; {free / 2**20:,.0f} MiB are free there: free some space, correct "
            f"the permissions or choose another folder",
            path=str(path),
            free_bytes=free,
        ) from error


def _free_bytes(path: Path) -> int:
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free
