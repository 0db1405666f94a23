"""A method and a path -> the scope that a caller needs: one literal table; `admin` for what it does not name."""

from __future__ import annotations

from typing import Literal

from raydml.jobs.callers import Scope

PUBLIC = frozenset({"/", "/livez", "/readyz", "/openapi.json"})  # for whoever reaches the server
PAGE = "/dashboard/"  # and so are the files below it
Needed = Scope | Literal["none"]

# What follows /v1/ -> what is needed to read it, and to change it.
RESOURCES: dict[str, tuple[Needed, Needed]] = {
    "jobs": ("jobs:read", "jobs:write"),
    "sweeps": ("jobs:read", "jobs:write"),
    "datasets": ("datasets:read", "datasets:write"),
    "models": ("models:read", "models:write"),
    "collections": ("search:read", "collections:write"),
    "aliases": ("search:read", "collections:write"),
    "schemas": ("none", "admin"),
    "webhooks": ("admin", "admin"),
    "keys": ("admin", "admin"),
    "audit": ("admin", "admin"),
}

# Questions about a collection that are asked by POST, as they have a body.
QUESTIONS = frozenset(
    {
        "search",
        "search:batch",
        "recommend",
        "points:get",
        "classify",
        "calibrate",
        "verify",
        "identify",
        "duplicates",
        "explain",
        "hard-negatives",
        "report",
    }
)


def is_public(path: str) -> bool:
    """Whether the path is for whoever reaches the server."""
    return path in PUBLIC or path.startswith(PAGE)


def needed(method: str, path: str) -> Needed:
    """The scope that this request needs; `none` is any key."""
    parts = path.split("/")[1:]
    if len(parts) < 2 or parts[0] != "v1":
        return "admin"
    reading, writing = RESOURCES.get(parts[1].partition(":")[0], ("admin", "admin"))
    return reading if is_question(method, path) else writing


def is_question(method: str, path: str) -> bool:
    """Whether the request changes nothing."""
    parts = path.split("/")[1:]
    of_one = parts[:2] == ["v1", "collections"] and len(parts) in (4, 6)  # or of its shadow
    asked = method == "POST" and of_one and parts[-1] in QUESTIONS
    return asked or method in ("GET", "HEAD", "OPTIONS")
