"""A folder and the path of a file in it, given by a stranger -> the file, open; no link leads out of the folder."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe must not make us wait
_CHUNK = 1 << 20  # bytes read at a time
_DIGESTS = 10_000  # that are remembered


@dataclass(frozen=True)
class Listed:
    """A file of the folder: its path, with `/`, its size in bytes and when it was changed, in seconds since 1970."""

    path: str
    size: int
    modified: float


class OpenFile:
    """A file that is open for reading, as long as it was when it was opened."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.status = os.fstat(descriptor)
        self.size = self.status.st_size

    def read(self, start: int, count: int) -> bytes:
        """Bytes from an offset on, within the size."""
        return os.pread(self.descriptor, max(0, min(count, self.size - start)), start)

    def chunks(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from an offset to another one; fewer where the file became shorter."""
        while start < stop and (chunk := self.read(start, min(_CHUNK, stop - start))):
            yield chunk
            start += len(chunk)

    def close(self) -> None:
        """Give it back."""
        os.close(self.descriptor)


def open_inside(folder: Path, path: str) -> OpenFile | None:
    """The regular file at this path, None where there is none, or where a link or a hidden name stands in the way."""
    parts = path.split("/")
    if "\0" in path or any(part.startswith(".") or not part for part in parts):
        return None
    descriptor = -1
    try:
        descriptor = os.open(folder, _FOLDER)
        for depth, part in enumerate(parts, start=1):
            inner = os.open(part, _FILE if depth == len(parts) else _FOLDER, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        file = OpenFile(descriptor)
        if not stat.S_ISREG(file.status.st_mode):
            return None
        descriptor = -1
        return file
    except (OSError, UnicodeEncodeError):
        return None
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def files_inside(folder: Path) -> list[Listed]:
    """All regular files below, by path; hidden ones and links are passed over. None where there is no folder."""
    if not folder.is_dir() or folder.is_symlink():
        return []
    found = []
    for parent, folders, names, descriptor in os.fwalk(folder, follow_symlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            try:
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            except FileNotFoundError:  # gone meanwhile
                continue
            if stat.S_ISREG(status.st_mode) and not name.startswith("."):
                path = (Path(parent) / name).relative_to(folder).as_posix()
                found.append(Listed(path, status.st_size, status.st_mtime))
    return sorted(found, key=lambda listed: listed.path)


class Digests:
    """SHA-256 of files, each computed once while it stays as it is; for one thread at a time."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[int, int, int, int], bytes] = OrderedDict()

    def of(self, file: OpenFile) -> bytes:
        """Of the file as long as it was when it was opened."""
        status = file.status
        mark = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
        if mark not in self._known:
            digest = hashlib.sha256()
            for chunk in file.chunks(0, file.size):
                digest.update(chunk)
            self._known[mark] = digest.digest()
            if len(self._known) > _DIGESTS:
                self._known.popitem(last=False)
        return self._known[mark]
