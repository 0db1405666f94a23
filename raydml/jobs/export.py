"""Files with known sizes and digests in; one tar archive out, piece by piece, the same bytes each time.

`NAME/SHA256SUMS` comes first: `sha256sum --check SHA256SUMS` proves what was unpacked.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_CHUNK = 1 << 18  # bytes of one piece
_BLOCK = tarfile.BLOCKSIZE
SUMS = "SHA256SUMS"


def size_of(name: str, files: Sequence[dict[str, Any]]) -> int:
    """Bytes of the archive; each of `files` has path, size and sha256."""
    sizes = [(SUMS, len(_sums(files))), *((file["path"], file["size"]) for file in files)]
    total = sum(len(_header(name, path, size)) + size + _padding(size) for path, size in sizes)
    return int(total) + 2 * _BLOCK


def pieces(name: str, folder: Path, files: Sequence[dict[str, Any]]) -> Iterator[bytes]:
    """The archive of the files of `folder`, each below `name`."""
    sums = _sums(files)
    yield _header(name, SUMS, len(sums)) + sums + bytes(_padding(len(sums)))
    for file in files:
        yield _header(name, file["path"], file["size"])
        with (folder / file["path"]).open("rb") as source:
            while chunk := source.read(_CHUNK):
                yield chunk
        yield bytes(_padding(file["size"]))
    yield bytes(2 * _BLOCK)


def _sums(files: Sequence[dict[str, Any]]) -> bytes:
    return "".join(f"{file['sha256']}  {file['path']}\n" for file in files).encode()


def _header(name: str, path: str, size: int) -> bytes:
    info = tarfile.TarInfo(f"{name}/{path}")
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> int:
    return -size % _BLOCK
