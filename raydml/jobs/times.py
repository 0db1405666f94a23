"""Milliseconds since 1970, as the database holds times, -> RFC 3339, as answers show them."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(milliseconds: int) -> str:
    """For example 2026-11-22T02:03:27.123Z."""
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
