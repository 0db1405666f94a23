"""An archive from somebody unknown in; its regular files in a folder out, or a refusal that leaves nothing.

Links, devices and names that lead out of the folder are refused, not passed over. The numbers of files and of bytes
are counted while they are written: what an archive says of itself is not believed.
"""

from __future__ import annotations

import lzma
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from raydml.errors import DataError

_CHUNK = 1 << 20
_LONGEST = 255  # bytes of a name, and
_DEEPEST = 32  # folders of a path
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,  # encrypted, or of a compression that Python lacks
)


@dataclass(frozen=True)
class Bounds:
    """How much an archive may hold."""

    files: int
    unpacked_bytes: int
    ratio: int = 200  # bytes unpacked for each byte of the archive; pictures have about 1, tables up to 20
    free_bytes: int = 16 << 20  # that any archive may unpack to, whatever its ratio


@dataclass(frozen=True)
class _Entry:
    name: str
    folder: bool
    file: IO[bytes] | None


def unpack(archive: Path, folder: Path, bounds: Bounds) -> int:
    """Write the files of a zip or tar (plain, gz, bz2, xz) into the empty `folder`; returns their number.

    Raises DataError where it is neither, is damaged, holds anything but files and folders, or more than `bounds`.
    """
    writer = _Writer(folder, bounds, archive.stat().st_size)
    entries = _zipped(archive) if zipfile.is_zipfile(archive) else _tarred(archive)
    try:
        for entry in entries:
            writer.write(entry)
    except DataError:
        raise
    except _BROKEN as error:
        raise DataError(f"the archive cannot be unpacked: {type(error).__name__}: {str(error)[:200]}") from error
    if not writer.files:
        raise DataError("the archive holds no files")
    return writer.files


class _Writer:
    def __init__(self, folder: Path, bounds: Bounds, packed: int) -> None:
        self.folder = folder.resolve()
        self.bounds = bounds
        self.most = min(bounds.unpacked_bytes, max(bounds.free_bytes, packed * bounds.ratio))
        self.files = 0
        self.entries = 0
        self.bytes = 0

    def write(self, entry: _Entry) -> None:
        self.entries += 1
        if self.entries > self.bounds.files:
            raise DataError(f"the archive holds more than {self.bounds.files} files and folders: send it in parts")
        path = self.folder.joinpath(*_parts(entry.name))
        if entry.folder:
            path.mkdir(parents=True, exist_ok=True)
            return
        assert entry.file is not None
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            target = path.open("xb")
        except FileExistsError:
            raise DataError(f"the archive holds {entry.name[:200]!r} twice") from None
        with target, entry.file as source:
            while chunk := source.read(_CHUNK):
                self.bytes += len(chunk)
                if self.bytes > self.most:
                    raise DataError(
                        f"the archive unpacks to more than {self.most} bytes: at most {self.bounds.ratio} times its "
                        f"size and {self.bounds.unpacked_bytes} bytes are taken"
                    )
                target.write(chunk)
        self.files += 1


def _parts(name: str) -> list[str]:
    """The folders and the name of an entry. Raises DataError for what is not plainly inside of the folder."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    wrong = (
        not parts
        or name.startswith(("/", "\\"))
        or ".." in parts
        or len(parts) > _DEEPEST
        or any("\\" in part or ":" in part or len(part.encode(errors="replace")) > _LONGEST for part in parts)
        or any(unicodedata.category(character) in ("Cc", "Cs") for character in name)
    )
    if wrong:
        raise DataError(
            f"the archive names {name[:200]!r}: names are relative, without .., \\, : or control characters"
        )
    return parts


def _zipped(archive: Path) -> Iterator[_Entry]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            mode = info.external_attr >> 16
            if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_IFMT(mode) == 0):
                raise DataError(f"the archive holds {info.filename[:200]!r}, which is a link or a device: leave it out")
            if info.is_dir():
                yield _Entry(info.filename, True, None)
            else:
                yield _Entry(info.filename, False, opened.open(info))


def _tarred(archive: Path) -> Iterator[_Entry]:
    with tarfile.open(archive, "r:*") as opened:
        for info in opened:
            if info.isdir():
                yield _Entry(info.name, True, None)
            elif info.isreg() and not info.issparse():
                yield _Entry(info.name, False, opened.extractfile(info))
            else:
                raise DataError(
                    f"the archive holds {info.name[:200]!r}, which is a link, a device or sparse: leave it out"
                )
