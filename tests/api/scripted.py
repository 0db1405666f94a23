"""A real HTTP server on a free port that answers as a test says, byte for byte, and breaks off where it says."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Seen:
    """A request as it came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Script:
    """What is answered to each request, in order: bytes, after which the connection is closed."""

    def __init__(self, answers: list[bytes]) -> None:
        self.answers = answers
        self.seen: list[Seen] = []
        self.url = ""
        self.left = threading.Event()  # a client closed its connection while more was to come


@contextmanager
def scripted(*answers: bytes) -> Iterator[Script]:
    """A server that gives these answers and then no more; an answer that ends with HOLD leaves the connection open."""
    script = Script(list(answers))

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            seen = read_request(self.rfile.readline, self.rfile.read)
            script.seen.append(seen)
            answer = script.answers[len(script.seen) - 1] if len(script.seen) <= len(script.answers) else b""
            self.wfile.write(answer.removesuffix(HOLD))
            if answer.endswith(HOLD):
                self.wfile.flush()
                assert self.rfile.read(1) == b""  # until the client leaves
                script.left.set()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        script.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield script
        finally:
            server.shutdown()
            thread.join()


HOLD = b"(and the connection stays open)"


def read_request(line: Callable[[], bytes], read: Callable[[int], bytes]) -> Seen:
    """One request of a connection."""
    method, path, _ = line().decode().split(" ", 2)
    headers = {}
    while (text := line().decode().strip()) != "":
        name, _, value = text.partition(": ")
        headers[name.lower()] = value
    return Seen(method, path, headers, read(int(headers.get("content-length", 0))))


def answer(status: int, document: Any = None, kind: str = "application/json", **headers: str) -> bytes:
    """A whole answer."""
    body = b"" if document is None else document if isinstance(document, bytes) else json.dumps(document).encode()
    said = {"content-type": kind, "content-length": str(len(body)), "connection": "close"}
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in {**said, **headers}.items()]
    return f"HTTP/1.1 {status} As-Told\r\n{''.join(lines)}\r\n".encode() + body


def problem(status: int, kind: str = "told", **headers: str) -> bytes:
    """A whole answer that refuses."""
    document = {"type": f"urn:raydml:problem:{kind}", "detail": "as told", "request_id": "r1", "errors": []}
    return answer(status, document, "application/problem+json", **headers)


def events(*frames: str, whole: bool = False) -> bytes:
    """A stream of events; one that is not whole breaks off behind its last byte."""
    sent = b"".join(chunk(frame.encode()) for frame in frames)
    return CHUNKED + sent + (b"0\r\n\r\n" if whole else b"")


def chunk(part: bytes) -> bytes:
    """A part of a body of unknown length."""
    return b"%x\r\n%b\r\n" % (len(part), part)
