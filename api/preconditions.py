"""A version -> its `ETag`; `If-Match` and `If-None-Match` of a request -> whether they hold (RFC 9110, section 13)."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Header

from api.problems import UNPROCESSABLE, Problem

_TAGS = re.compile(r'\s*(?:(?:W/)?"[^"]*"\s*(?:,\s*|$))+')
_TAG = re.compile(r'(W/)?"([^"]*)"')

IfMatch = Annotated[
    str | None,
    Header(alias="If-Match", max_length=1000, description="the ETag that was seen: 412 where the job has another now"),
]
IfNoneMatch = Annotated[
    str | None,
    Header(alias="If-None-Match", max_length=1000, description="the ETag that was seen: 304 where it still holds"),
]


def etag(version: object) -> str:
    """As the header says it."""
    return f'"{version}"'


def tags(header: str, name: str) -> frozenset[str] | None:
    """The tags that a header names, None for `*`. Raises Problem 422 where it names none."""
    if header.strip() == "*":
        return None
    if not _TAGS.fullmatch(header):
        raise Problem(UNPROCESSABLE, "invalid-request", f'{name}: write * or tags as they were given, such as "3"')
    return frozenset(tag for weak, tag in _TAG.findall(header) if not (weak and name == "If-Match"))


def check_match(header: str | None, version: object) -> None:
    """Raises Problem 412 where `If-Match` names other versions."""
    if header is None:
        return
    wanted = tags(header, "If-Match")
    if wanted is not None and str(version) not in wanted:
        raise Problem(
            412,
            "changed-since",
            f"{name_all(wanted)} was seen, and it is {etag(version)} now: read it again, then decide again",
            headers={"ETag": etag(version)},
        )


def unchanged(header: str | None, version: object) -> bool:
    """Whether `If-None-Match` names this version: then the client has it already."""
    if header is None:
        return False
    wanted = tags(header, "If-None-Match")
    return wanted is None or str(version) in wanted


def name_all(versions: frozenset[str]) -> str:
    """Tags for a message, in order."""
    return ", ".join(map(etag, sorted(versions))) or "no strong tag"
