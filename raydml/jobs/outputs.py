"""A file that grows by lines -> its lines from a byte on, each with the byte behind it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

LONGEST = 1 << 16  # bytes of a line; a longer one comes in parts
_CHUNK = 16 * LONGEST  # bytes read at a time


@dataclass(frozen=True)
class Line:
    """A line without its end, and the number of bytes of the file up to the end of it."""

    end: int
    text: str


def size_of(path: Path) -> int:
    """Bytes of the file, 0 without one."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def read_output(path: Path, after: int, limit: int, *, over: bool) -> list[Line]:
    """At most `limit` lines behind the byte `after`; the last one only once it has ended, or the file is `over`.

    `after` is 0 or a line's `end`. Bytes that are no UTF-8 become U+FFFD.
    """
    try:
        with path.open("rb") as file:
            file.seek(after, os.SEEK_SET)
            content = file.read(_CHUNK)
            return _lines(content, after, limit, over and len(content) < _CHUNK)
    except FileNotFoundError:
        return []


def _lines(content: bytes, after: int, limit: int, ended: bool) -> list[Line]:
    found: list[Line] = []
    place = 0
    while place < len(content) and len(found) < limit:
        stop = content.find(b"\n", place, place + LONGEST)
        whole = stop >= 0
        if not whole:
            stop = min(len(content), place + LONGEST)
            if stop - place < LONGEST and not ended:
                break
            while place + LONGEST - 3 < stop < len(content) and content[stop] & 0xC0 == 0x80:
                stop -= 1  # not within a character
        found.append(Line(after + stop + whole, content[place:stop].decode(errors="replace")))
        place = stop + whole
    return found
