"""What a conversation with a server consists of, as values: generators yield these steps, `senders` takes them.

So retries, pages, streams and waiting are written once, without a socket and without `async`. A generator is sent the
result of each step, and is thrown httpx2's TransportError where a step could not be taken.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from raydml.client.retries import Retries

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Request:
    """What goes over the wire; `path` is relative to the server's URL, with its query string."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    seconds: float | None = None  # how long it may be silent; None: as the client was told


@dataclass(frozen=True)
class Answer:
    """What came back; header names are in lower case."""

    request: Request
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def ok(self) -> bool:
        """Whether the server did what was asked."""
        return 200 <= self.status < 300


@dataclass(frozen=True)
class Send:
    """Ask, and read the whole answer -> Answer."""

    request: Request


@dataclass(frozen=True)
class Connect:
    """Ask, and leave the body for the steps below -> Answer, with its body only where it refuses."""

    request: Request
    events: bool  # whether the body is server-sent events, or bytes


@dataclass(frozen=True)
class NextEvent:
    """The next server-sent event of the open connection -> httpx2.ServerSentEvent, or None at its end."""


@dataclass(frozen=True)
class NextBytes:
    """The next bytes of the open connection -> bytes, or None at its end."""


@dataclass(frozen=True)
class Pause:
    """Wait -> None."""

    seconds: float


@dataclass(frozen=True)
class Give:
    """An item for the caller -> None, once the caller wants the next one."""

    item: Any


Step: TypeAlias = Send | Connect | NextEvent | NextBytes | Pause | Give
Steps: TypeAlias = Generator[Step, Any, T_co]  # and what the generator returns


class Plan(ABC, Generic[T_co]):
    """Something to do with a server, whoever takes its steps; it gives one item of its type, or many."""

    @abstractmethod
    def steps(self, retries: Retries) -> Steps[None]:
        """All of it."""
