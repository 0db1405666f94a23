"""Server-sent events that go on where they broke off, until the server says that there are no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import httpx2

from raydml.client.calls import Call, failure
from raydml.client.retries import Retries
from raydml.client.steps import Answer, Connect, Give, NextEvent, Pause, Plan, Steps
from raydml.errors import ServerFailed

T = TypeVar("T")
EVENT_STREAM = "text/event-stream"
END = "end"  # the event after which nothing comes
STOPPING = "stopping"  # of a server that has to end the connection: another one goes on
SILENCE = 60.0  # seconds without a byte, after which a connection is given up: servers send comments in between


@dataclass(frozen=True)
class Stream(Plan[T], Generic[T]):
    """`call` is the GET of the stream, `read` makes items of events' data, `after` is the id to begin behind."""

    call: Call[Any]
    read: Callable[[str], T]
    after: str | None = None

    def steps(self, retries: Retries) -> Steps[None]:
        """Gives the items."""
        yield from self.follow(retries)

    def follow(self, retries: Retries) -> Steps[str]:
        """Gives the items; comes back with what the end says. Reconnects with Last-Event-ID.

        Failures are counted anew after each event, and after a connection that held for a while. Raises ServiceError:
        NotFound where the id is forgotten.
        """
        last, failures, wanted = self.after, 0, 0.0
        while True:
            began = retries.clock()
            request = replace(self.call.request(**_headers(last)), seconds=SILENCE)
            outcome: Answer | httpx2.TransportError | None = None
            try:
                answer: Answer = yield Connect(request, events=True)
                if not answer.ok:
                    outcome = answer
                else:
                    _check(answer)
                    while (event := (yield NextEvent())) is not None:
                        last = event.id or last
                        wanted = wanted if event.retry is None else event.retry / 1000
                        if event.event == END:
                            return str(event.data)
                        if event.event == STOPPING:
                            break
                        if event.data:  # others only say where to go on, and when
                            failures = 0
                            yield Give(self.read(event.data))
            except httpx2.TransportError as error:
                outcome = error
            if retries.clock() - began > retries.longest:
                failures = 0
            pause = retries.pause(failures, outcome, repeatable=True)
            if pause is None:
                raise failure(request, outcome)
            failures += 1
            yield Pause(max(pause, wanted))


def _headers(last: str | None) -> dict[str, str]:
    headers = {"Accept": EVENT_STREAM, "Cache-Control": "no-store"}
    return headers if last is None else {**headers, "Last-Event-ID": last}


def _check(answer: Answer) -> None:
    kind = answer.headers.get("content-type", "")
    if not kind.startswith(EVENT_STREAM):
        raise ServerFailed(
            f"{answer.request.path} was answered by {kind or 'something'} and not by {EVENT_STREAM}: "
            f"is this URL a raydml server's?",
            status=answer.status,
        )
