"""Where a listing goes on, as a word that means something to this server alone: it holds only for the same listing."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

import orjson

from api.problems import UNPROCESSABLE, Problem

_POSITION = re.compile(r"[a-z]+_[0-9a-hjkmnp-tv-z]{26}")  # an id, by which listings are ordered


def cursor_of(position: str, *listing: object) -> str:
    """The cursor behind the item with this id; `listing` is what was asked for."""
    return base64.urlsafe_b64encode(f"{_mark(listing)}{position}".encode()).decode().rstrip("=")


def position_of(cursor: str | None, *listing: object) -> str | None:
    """The id that the next page begins behind, None for the first page. Raises Problem 422 for another's cursor."""
    if cursor is None:
        return None
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except (binascii.Error, ValueError) as error:
        raise _foreign() from error
    mark, position = text[:8], text[8:]
    if mark != _mark(listing) or not _POSITION.fullmatch(position):
        raise _foreign()
    return position


def _mark(listing: tuple[object, ...]) -> str:
    return hashlib.sha256(orjson.dumps(listing)).hexdigest()[:8]


def _foreign() -> Problem:
    return Problem(
        UNPROCESSABLE,
        "invalid-request",
        "cursor: give the `next_cursor` of the page before as it was, with the same filters",
    )
