"""A spec as it was sent -> one that may become a job: every mistake with its path and line, before anything is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.problems import TOO_LARGE, UNPROCESSABLE, Problem
from raydml.errors import SpecError
from raydml.spec import JobSpec
from raydml.specfile import parse_spec, read_spec

MOST_BYTES = 1 << 16  # of a spec: what is longer is none


def spec_of(sent: Mapping[str, Any] | str, body: bytes) -> JobSpec:
    """The spec, checked. Raises Problem 413, or 422 with every mistake.

    Lines are those of the spec where it was sent as a text, and else those of the request's body.
    """
    if len(sent if isinstance(sent, str) else body) > MOST_BYTES:
        raise Problem(TOO_LARGE, "spec-too-long", f"a spec has at most {MOST_BYTES} bytes, and this one has more")
    try:
        return read_spec(sent) if isinstance(sent, str) else parse_spec(sent)
    except SpecError as error:
        raise wrong_spec(error if isinstance(sent, str) else _with_lines(body, error)) from error


def wrong_spec(error: SpecError) -> Problem:
    """The problem of a spec, with the path and the line of each mistake, where they are known."""
    found = [
        {
            "path": "spec" + ("." + each["path"] if each["path"] else ""),
            "line": each["line"],
            "message": each["problem"],
        }
        for each in error.data.get("problems", [])
    ]
    return Problem(UNPROCESSABLE, "spec-error", error.message, errors=found[:100])


def _with_lines(body: bytes, error: SpecError) -> SpecError:
    """The same mistakes where they stand in the body; without lines where it is not JSON."""
    try:
        read_spec(body.decode(), "body", "spec")
    except SpecError as placed:
        return placed if placed.data.get("problems") else error
    except UnicodeDecodeError:
        return error
    return error
