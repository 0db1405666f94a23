"""Who asks: a key's project and its scopes, or a person on this machine; what neither may do is refused here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from raydml.errors import SpecError
from raydml.jobs.ids import DEFAULT_PROJECT

Scope = Literal[
    "jobs:read",
    "jobs:write",
    "datasets:read",
    "datasets:write",
    "models:read",
    "models:write",
    "search:read",
    "collections:write",
    "admin",
]
SCOPES: tuple[Scope, ...] = get_args(Scope)


@dataclass(frozen=True)
class Caller:
    """Who asks. `key` is the id of the key, None for a person on this machine while there are no keys."""

    project: str
    scopes: frozenset[Scope]
    key: str | None = None

    @property
    def name(self) -> str:
        """As the audit log and the events name it."""
        return self.key or "local"

    def may(self, scope: Scope) -> bool:
        """Whether the caller has the scope; `admin` has every one, within its own project."""
        return scope in self.scopes or "admin" in self.scopes


LOCAL = Caller(DEFAULT_PROJECT, frozenset(SCOPES))


def parse_scopes(names: Iterable[str]) -> frozenset[Scope]:
    """Names of scopes, checked. Raises SpecError with those that there are."""
    given = list(names)
    wrong = sorted(set(given) - set(SCOPES))
    if wrong or not given:
        raise SpecError(f"scopes: {', '.join(wrong) or 'none given'}; there are {', '.join(SCOPES)}")
    return frozenset(scope for scope in SCOPES if scope in given)
