"""How much one request may ask for, by the settings: more is refused with the number that is taken."""

from __future__ import annotations

import re

from api.documents import Query
from api.problems import TOO_LARGE, UNPROCESSABLE, Problem
from api.settings import Settings
from api.store import NAME

_NAME = re.compile(NAME)


def check_name(name: str) -> None:
    """What a collection may be called."""
    if not _NAME.fullmatch(name):
        raise Problem(UNPROCESSABLE, "invalid-request", f"{name[:200]!r} is no name of a collection or alias: {NAME}")


def check_points(count: int, settings: Settings) -> None:
    """Points written or read."""
    if count > settings.max_points:
        raise Problem(
            TOO_LARGE,
            "too-many-points",
            f"{count} points, and {settings.max_points} are taken at once: send them in parts",
        )


def check_k(k: int, settings: Settings) -> None:
    """Neighbours of a query."""
    if k > settings.max_k:
        raise Problem(UNPROCESSABLE, "invalid-request", f"k is {k}, and at most {settings.max_k} neighbours are given")


def check_queries(count: int, settings: Settings) -> None:
    """Queries of a request."""
    if count > settings.max_queries:
        raise Problem(
            TOO_LARGE,
            "too-many-queries",
            f"{count} queries, and {settings.max_queries} are taken at once: send them in parts",
        )


def check_query(query: Query, settings: Settings) -> None:
    """What is asked, before any of it is decoded or embedded."""
    given = [name for name in ("vectors", "ids", "images", "texts") if getattr(query, name) is not None]
    if len(given) != 1:
        raise Problem(
            UNPROCESSABLE,
            "invalid-request",
            f"give exactly one of vectors, ids, images and texts, not {given or 'none'}",
        )
    check_k(query.k, settings)
    check_queries(len(query.ids or query.texts or ()), settings)
    texts = query.texts or []
    if len(texts) > settings.max_texts or any(len(text) > settings.max_text_characters for text in texts):
        raise Problem(
            TOO_LARGE,
            "text-too-long",
            f"at most {settings.max_texts} texts of {settings.max_text_characters} characters are taken at once",
        )
