"""One request to the API as a value: what is asked, how often it may be sent, and how its answer is read."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode

import httpx2

from raydml.client import bodies
from raydml.client.problems import refusal, unreachable
from raydml.client.retries import Retries
from raydml.client.steps import Answer, Give, Pause, Plan, Request, Send, Steps
from raydml.errors import NotFound

T = TypeVar("T")
LONG = 600.0  # seconds that calls may take which read data, compute over collections or copy them


def key(given: str | None) -> str:
    """An idempotency key: the one that is given, or one that nobody had before."""
    return given or uuid.uuid4().hex


@dataclass(frozen=True)
class Call(Plan[T], Generic[T]):
    """`template` is a path of openapi.json, filled in by `names`; `read` makes the result of the answer's document."""

    method: str
    template: str
    read: Callable[[Any], T]
    names: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, Any] = field(default_factory=dict)  # None is left out, a tuple is said value by value
    body: Any = None  # a document
    content: bytes | None = None  # or bytes as they are
    headers: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None  # the Idempotency-Key of a change
    repeatable: bool | None = None  # None: all but a POST without a key
    seconds: float | None = None  # how long the answer may take; None: as the client was told

    @property
    def may_repeat(self) -> bool:
        """Whether sending it twice is as good as once."""
        return (self.method != "POST" or self.key is not None) if self.repeatable is None else self.repeatable

    def request(self, **headers: str) -> Request:
        """As it is sent."""
        path = self.template.format_map({name: quote(str(value), safe="") for name, value in self.names.items()})
        query = urlencode([(name, _text(value)) for name, given in self.query.items() for value in _each(given)])
        content, kind = (self.content, None) if self.body is None else bodies.encoded(self.body)
        given = {
            "Accept": bodies.JSON,
            **({"Content-Type": kind} if kind else {}),
            **({"Idempotency-Key": self.key} if self.key else {}),
            **self.headers,
            **headers,
        }
        return Request(self.method, f"{path}?{query}" if query else path, given, content, self.seconds)

    def ask(self, retries: Retries) -> Steps[T]:
        """Send it, again where that helps and does no harm. Raises ServiceError."""
        request = self.request()
        failures = 0
        while True:
            try:
                outcome: Answer | httpx2.TransportError = yield Send(request)
            except httpx2.TransportError as error:
                outcome = error
            if isinstance(outcome, Answer) and outcome.ok:
                return self.read(bodies.decoded(outcome))
            pause = retries.pause(failures, outcome, self.may_repeat)
            if pause is None:
                refused = failure(request, outcome)
                if failures and self.method == "DELETE" and isinstance(refused, NotFound):
                    return self.read(None)  # what was sent before has removed it
                raise refused
            failures += 1
            yield Pause(pause)

    def steps(self, retries: Retries) -> Steps[None]:
        """Gives its result."""
        yield Give((yield from self.ask(retries)))


@dataclass(frozen=True)
class Pages(Plan[T], Generic[T]):
    """All items of a list that is answered in pages: `page` makes the call for a cursor, whose result is a page."""

    page: Callable[[Any], Call[tuple[list[T], Any]]]

    def steps(self, retries: Retries) -> Steps[None]:
        """Gives the items one by one; asks for a page when it is needed."""
        cursor: Any = None
        while True:
            items, cursor = yield from self.page(cursor).ask(retries)
            for item in items:
                yield Give(item)
            if cursor is None:
                return

    def gather(self, retries: Retries) -> Steps[list[T]]:
        """All items at once."""
        items, cursor = yield from self.page(None).ask(retries)
        while cursor is not None:
            more, cursor = yield from self.page(cursor).ask(retries)
            items = [*items, *more]
        return items


@dataclass(frozen=True)
class Recipe(Plan[T], Generic[T]):
    """Several calls with one result."""

    make: Callable[[Retries], Steps[T]]

    def steps(self, retries: Retries) -> Steps[None]:
        """Gives its result."""
        yield Give((yield from self.make(retries)))


@dataclass(frozen=True)
class Flow(Plan[T], Generic[T]):
    """Several calls and streams with many items, which `make` gives."""

    make: Callable[[Retries], Steps[None]]

    def steps(self, retries: Retries) -> Steps[None]:
        """Gives the items."""
        yield from self.make(retries)


def failure(request: Request, outcome: Answer | httpx2.TransportError | None) -> Exception:
    """The error of an outcome that is not to be tried again."""
    if isinstance(outcome, Answer):
        return refusal(outcome)
    error = unreachable(request, outcome)
    error.__cause__ = outcome
    return error


def nothing(_: Any) -> None:
    """`read` of an answer that has no body."""


def _each(given: Any) -> tuple[Any, ...]:
    """The values of one name in a query string."""
    return given if isinstance(given, tuple) else () if given is None else (given,)


def _text(value: Any) -> str:
    """A value in a query string: filters and booleans as JSON."""
    return value if isinstance(value, str) else json.dumps(value, allow_nan=False)


def given(**named: Any) -> dict[str, Any]:
    """What was given: None is left to the server."""
    return {name: value for name, value in named.items() if value is not None}
