"""The authority's side of the line: a thread with a socket that carries what members say to one Authority and back.

It lives in the driver's process, as the run's lease does. Messages are JSON, one a line (see `link`).
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from raydml.membership.authority import Authority
from raydml.membership.link import Address
from raydml.membership.messages import Beat, Event, Pulse, Report, View

TURN_SECONDS = 0.02
_LONGEST_LINE = 1 << 20


class Server:
    """Runs one Authority, which `found` makes at a monotonic time; every method may be called from any thread.

    `host` is the address at which members reach this machine.
    """

    def __init__(self, found: Callable[[float], Authority], host: str) -> None:
        self._found, self._host = found, host
        self._token = secrets.token_hex(16)
        self._lines: dict[str, _Line] = {}
        self._port = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True, name="membership")
        self.failure: dict[str, str] | None = None  # kind and message of the first error
        self.outcome: str | None = None  # how the first member that came to the end says the run ended
        self.crash: BaseException | None = None  # of the thread itself

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        if self.crash is not None:
            raise self.crash
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell everybody that the run is over, and close."""
        with suppress(RuntimeError):  # the thread has ended
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=5)

    @property
    def address(self) -> Address:
        """What members need to come here."""
        return Address(self._host, self._port, self._token)

    @property
    def events(self) -> list[Event]:
        """All events so far."""
        return list(self._authority.events)

    @property
    def view(self) -> View | None:
        """The present group."""
        return self._authority.view

    @property
    def over(self) -> bool:
        """Whether the run has ended, one way or the other."""
        return self._authority.over or self._authority.deposed or self.crash is not None

    def ask(self, wish: Callable[[Authority, float], None]) -> None:
        """Let the authority take up a wish: `lambda authority, now: authority.resize(3, now)`."""

        def take() -> None:
            wish(self._authority, time.monotonic())
            self._turn()

        with suppress(RuntimeError):  # the thread has ended
            self._loop.call_soon_threadsafe(take)

    def fail(self, kind: str, message: str) -> None:
        """End the run with an error."""
        self.ask(lambda authority, now: self._failed(kind, message, now))

    def hang_up(self, member: str) -> None:
        """Close the connection of a member, which will call again."""

        def close() -> None:
            if (line := self._lines.get(member)) is not None:
                line.writer.close()

        self._loop.call_soon_threadsafe(close)

    # In the thread.

    async def _serve(self) -> None:
        try:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            self._authority = self._found(time.monotonic())
            server = await asyncio.start_server(self._connected, host="0.0.0.0", port=0, limit=_LONGEST_LINE)
            self._port = server.sockets[0].getsockname()[1]
            self._ready.set()
            async with server:
                while not self._stop.is_set():
                    self._turn()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._stop.wait(), TURN_SECONDS)
                if not self._authority.over:
                    self._authority.finish(time.monotonic())
                self._turn()
                for line in list(self._lines.values()):  # members hang up meanwhile
                    with suppress(OSError, TimeoutError):
                        await asyncio.wait_for(line.writer.drain(), 1)
        except BaseException as error:
            self.crash = error
            raise
        finally:
            self._ready.set()

    def _turn(self) -> None:
        """Hand out a view that has closed, and tell members whose standing has changed."""
        now = time.monotonic()
        view = self._authority.tick(now)
        if view is not None:
            for member in view.members:
                self._send_view(member, view)
        self.failure = self._authority.failure  # told by a member, or the authority's own finding
        for line in self._lines.values():
            line.tell(self._authority.standing(line.beat, now))

    def _send_view(self, member: str, view: View) -> None:
        if (line := self._lines.get(member)) is not None:
            line.send({"type": "view", "lease": self._authority.policy.lease, "view": asdict(view)})

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a member; it is the only one that counts until the member opens another."""
        line: _Line | None = None
        try:
            member = self._member(await asyncio.wait_for(reader.readline(), 5))
            if member is None:
                return
            line = self._lines[member] = _Line(member, writer)
            while (raw := await reader.readline()) and self._lines.get(member) is line:
                self._hear(line, json.loads(raw), time.monotonic())
        except (OSError, ValueError, TimeoutError):
            pass  # the connection broke, or what comes is cut short or no JSON
        except asyncio.CancelledError:
            return  # the run is over
        finally:
            writer.close()
            if line is not None and self._lines.get(line.member) is line:
                del self._lines[line.member]
                self._authority.disconnected(line.member, time.monotonic())

    def _member(self, hello: bytes) -> str | None:
        """Who calls; None for anybody who does not know the token."""
        said = json.loads(hello)
        if not isinstance(said, dict) or not hmac.compare_digest(str(said.get("token")).encode(), self._token.encode()):
            return None
        return str(said["member"])

    def _hear(self, line: _Line, message: dict[str, Any], now: float) -> None:
        fields = {name: value for name, value in message.items() if name not in ("type", "number")}
        match message["type"]:
            case "beat":
                line.beat = Beat(**fields)
                line.answer(self._authority.beat(line.beat, now), message["number"])
                return
            case "report":
                view = self._authority.report(Report(**fields), now)
                if view is not None:
                    self._send_view(line.member, view)
            case "leave":
                self._authority.leave(line.member, now)
            case "done":
                self.outcome = self.outcome or message["outcome"]
                self._authority.finish(now)
            case "failed":
                self._failed(message["kind"], message["message"], now)
        self._turn()

    def _failed(self, kind: str, message: str, now: float) -> None:
        self._authority.fail(now, message, kind)
        self.failure = self._authority.failure


class _Line:
    """The open connection of one member: its last beat, and the last standing that it was told."""

    def __init__(self, member: str, writer: asyncio.StreamWriter) -> None:
        self.member, self.writer = member, writer
        self.beat = Beat(member, 0, 0)
        self._told: Pulse | None = None

    def answer(self, pulse: Pulse, number: int) -> None:
        """Answer a beat; only this grants a lease."""
        self.send({"type": "pulse", "number": number, **asdict(pulse)})
        self._told = pulse

    def tell(self, pulse: Pulse) -> None:
        """Tell of a standing that has changed since the last word."""
        if self._told is not None and (pulse.standing, pulse.epoch) != (self._told.standing, self._told.epoch):
            self.send({"type": "pulse", "number": 0, **asdict(pulse)})
            self._told = pulse

    def send(self, message: dict[str, Any]) -> None:
        """Put one message on the line; one that nobody reads any more is dropped with its connection."""
        if not self.writer.is_closing():
            self.writer.write(json.dumps(message).encode() + b"\n")
