"""Milliseconds since 1970 -> RFC 3339, UTC."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(milliseconds: int) -> str:
    """`2026-11-22T02:03:29.123Z`."""
    moment = datetime.fromtimestamp(milliseconds // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1000:03d}Z"


def maybe(milliseconds: int | None) -> str | None:
    """None stays None."""
    return None if milliseconds is None else rfc3339(milliseconds)
