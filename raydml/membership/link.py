"""A member's line to the authority: a thread that beats, hears how the member stands, and takes reports for views.

Messages are JSON, one a line; the first line of a connection carries the run's token. A lost connection is opened
again until the lease is over; meanwhile training goes on.
"""

from __future__ import annotations

import json
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

from raydml.membership.messages import Beat, Report, Standing, View

BEAT_SECONDS = 0.25
STEP_SECONDS = 0.02  # between beats that tell of a new step: where a lone worker dies, the authority knows at which
ORPHANED_SECONDS = 120.0
_AGAIN_SECONDS = 0.02  # a broken connection is to be back well within the authority's grace
_CONNECT_SECONDS = 2.0


@dataclass(frozen=True)
class Address:
    """Where the authority listens, and the token that it asks for."""

    host: str
    port: int
    token: str


class Gone(Exception):
    """This member was counted as lost, or is to leave: what it holds no longer belongs to the run."""


class Over(Exception):
    """The run has ended."""


class Link:
    """Used by one member; `on_broken` is called in the link's thread when the group must be left at once."""

    def __init__(self, address: Address, member: str, on_broken: Callable[[], None]) -> None:
        self.member = member
        self._address, self._on_broken = address, on_broken
        self._changed = threading.Condition()
        self._standing: Standing = "wait"
        self._view: View | None = None
        self._epoch, self._step, self._speed = 0, 0, 0.0
        self._lease = 0.0  # monotonic time until which the authority counts this member as alive
        self._outbox: list[dict[str, Any]] = []
        self._report: Report | None = None
        self._reported = 0.0  # when the report was last sent
        self._beaten = 0.0  # when the last beat was sent
        self._closed = False
        self._opened = time.monotonic()
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._work, daemon=True, name=f"link-{member}")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
        self._nudge()
        self._thread.join(timeout=5)
        self._wake.close()
        self._woken.close()

    # What the training thread asks.

    def arrive(self, report: Report) -> View:
        """Come for a view with what this member holds; waits until there is one.

        Raises Gone where it no longer belongs to the run, and Over where that has ended.
        """
        with self._changed:
            self._report, self._view = report, None
            self._nudge()
            self._changed.wait_for(lambda: self._view is not None or self._standing in ("gone", "over") or self._closed)
            self._report = None
            if self._view is None:
                raise Over if self._standing == "over" else Gone
            return self._view

    def at(self, step: int, speed: float) -> None:
        """The number of steps in the state, and the own speed: told at once, where that is not too often."""
        self._step, self._speed = step, speed
        if time.monotonic() - self._beaten > STEP_SECONDS:
            self._nudge()

    @property
    def standing(self) -> Standing:
        """As of the last word from the authority."""
        return self._standing

    def may_commit(self) -> bool:
        """Whether the authority still counts this member as alive, for sure."""
        return time.monotonic() < self._lease

    def say(self, what: str, **values: Any) -> None:
        """Tell the authority something that has no answer: done, failed, leave. Delivered as long as it lives."""
        with self._changed:
            self._outbox.append({"type": what, "member": self.member, **values})
        self._nudge()

    def flush(self, seconds: float = 10.0) -> None:
        """Wait until all that was said is sent."""
        with self._changed:
            self._changed.wait_for(lambda: not self._outbox, timeout=seconds)

    def _nudge(self) -> None:
        with suppress(OSError):
            self._wake.send(b".")

    # The link's thread.

    def _work(self) -> None:
        while not self._closed and self._standing != "over":
            try:
                with socket.create_connection((self._address.host, self._address.port), _CONNECT_SECONDS) as line:
                    self._speak(line)
            except (OSError, ValueError):
                self._check_lease()
                time.sleep(_AGAIN_SECONDS)

    def _speak(self, line: socket.socket) -> None:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._send(line, {"type": "hello", "member": self.member, "token": self._address.token})
        with closing(_Lines(line, self._woken)) as reader:
            self._converse(line, reader)

    def _converse(self, line: socket.socket, reader: _Lines) -> None:
        """Send what there is to say, hear what comes; until the member hangs up or the line breaks."""
        reported: Report | None = None
        sent: dict[int, float] = {}
        number, told = 0, -1
        while not self._closed or self._outbox:
            with self._changed:
                messages, report = list(self._outbox), self._report
            for message in messages:
                self._send(line, message)
            with self._changed:
                del self._outbox[: len(messages)]
                self._changed.notify_all()
            if report is not None and report is not reported:
                self._reported = time.monotonic()
                self._send(line, {"type": "report", **asdict(report)})
            reported = report
            now, every = time.monotonic(), BEAT_SECONDS if self._step == told else STEP_SECONDS
            if now >= self._beaten + every or not number:
                number, told, self._beaten = number + 1, self._step, now
                sent[number] = now
                beat = Beat(self.member, self._epoch, told, self._speed)
                self._send(line, {"type": "beat", "number": number, **asdict(beat)})
            for answer in reader.within(max(0.0, self._beaten + BEAT_SECONDS - time.monotonic())):
                self._hear(answer, sent)
            self._check_lease()

    def _send(self, line: socket.socket, message: dict[str, Any]) -> None:
        line.settimeout(_CONNECT_SECONDS)
        line.sendall(json.dumps(message).encode() + b"\n")

    def _hear(self, answer: dict[str, Any], sent: dict[int, float]) -> None:
        with self._changed:
            if answer["type"] == "view":
                fields = answer["view"]
                view = View(**fields | {"members": tuple(fields["members"]), "deal": tuple(fields["deal"])})
                if self._report is not None and view.epoch > self._epoch and self.member in view.members:
                    self._lease = max(self._lease, self._reported + answer["lease"])
                    self._view, self._epoch, self._standing = view, view.epoch, "go"
            else:
                self._take(answer, sent)
            self._changed.notify_all()
        if self._standing in ("broken", "gone", "over"):
            self._on_broken()

    def _take(self, answer: dict[str, Any], sent: dict[int, float]) -> None:
        """A pulse: stale ones, of an epoch that this member has left, only keep the lease."""
        began = sent.pop(answer["number"], None)
        if began is not None:
            self._lease = max(self._lease, began + answer["lease"])
        if answer["standing"] in ("gone", "over") or answer["epoch"] == self._epoch:
            self._standing = answer["standing"]

    def _check_lease(self) -> None:
        """A member that the authority may have given up stops and waits; for one that is gone, not for ever."""
        now = time.monotonic()
        if self._epoch and now >= self._lease:
            self._on_broken()
        if now > max(self._lease, self._opened) + ORPHANED_SECONDS:
            with self._changed:
                self._standing = "over"
                self._changed.notify_all()


class _Lines:
    """JSON lines from a socket, as they come; a nudge ends the wait."""

    def __init__(self, line: socket.socket, nudges: socket.socket) -> None:
        self._line, self._nudges, self._rest = line, nudges, b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(line, selectors.EVENT_READ)
        self._selector.register(nudges, selectors.EVENT_READ)

    def close(self) -> None:
        """Give back what the wait needs; the sockets stay open."""
        self._selector.close()

    def within(self, seconds: float) -> list[dict[str, Any]]:
        """Whole lines that have come after at most that many seconds. Raises OSError at the end of the stream."""
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._nudges:
                self._nudges.recv(4096)
                continue
            data = self._line.recv(1 << 16)
            if not data:
                raise ConnectionError("the authority closed the line")
            self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        return [json.loads(line) for line in lines]
