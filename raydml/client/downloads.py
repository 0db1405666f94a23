"""Bytes of an answer -> a file, whole or not at all; a download that breaks off goes on where it was."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import httpx2

from raydml.client.calls import Call, failure
from raydml.client.retries import Retries
from raydml.client.steps import Answer, Connect, Give, NextBytes, Pause, Plan, Request, Steps
from raydml.errors import ResourceError, ServerFailed

PARTIAL = 206
_SHA256 = re.compile(r"sha-256=:([A-Za-z0-9+/=]+):")


@dataclass(frozen=True)
class Download(Plan[Path]):
    """`call` is the GET of the bytes; they go to the file `to`, or to a file of this `name` where that is a folder."""

    call: Call[Path]
    to: Path
    name: str

    def steps(self, retries: Retries) -> Steps[None]:
        """Gives the file's path. Raises ServiceError, ServerFailed where the bytes are not those of its SHA-256."""
        target = self.to / Path(self.name).name if self.to.is_dir() else self.to
        beside = target.with_name(f".{target.name}.{uuid4().hex}.part")
        try:
            with beside.open("w+b") as file:
                digest = yield from self._fill(file, retries)
                _check(file, digest, self.name)
                os.fsync(file.fileno())
            os.replace(beside, target)
        except OSError as error:
            raise ResourceError(f"{target} cannot be written: {error.strerror or error}") from error
        finally:
            beside.unlink(missing_ok=True)
        yield Give(target)

    def _fill(self, file: BinaryIO, retries: Retries) -> Steps[bytes | None]:
        """All bytes; gives back the SHA-256 that the server names."""
        failures, tag = 0, ""
        while True:
            request = self._request(file.tell(), tag)
            outcome: Answer | httpx2.TransportError | None = None
            try:
                answer: Answer = yield Connect(request, events=False)
                if not answer.ok:
                    outcome = answer
                else:
                    if answer.status != PARTIAL:  # from the beginning: it is another file than before
                        file.seek(0)
                        file.truncate()
                    tag = answer.headers.get("etag", "")
                    while (part := (yield NextBytes())) is not None:
                        failures = 0
                        file.write(part)
                    return _digest(answer)
            except httpx2.TransportError as error:
                outcome = error
            pause = retries.pause(failures, outcome, repeatable=True)
            if pause is None:
                raise failure(request, outcome)
            failures += 1
            yield Pause(pause)

    def _request(self, have: int, tag: str) -> Request:
        """For the rest of the file that was begun, if it is still the same one."""
        rest = {"Range": f"bytes={have}-", "If-Range": tag} if have and tag else {}
        return self.call.request(**{"Accept": "*/*", "Accept-Encoding": "identity"}, **rest)


def _digest(answer: Answer) -> bytes | None:
    named = _SHA256.search(answer.headers.get("repr-digest", ""))
    return None if named is None else base64.b64decode(named[1])


def _check(file: BinaryIO, digest: bytes | None, name: str) -> None:
    file.flush()
    file.seek(0)
    found = hashlib.sha256()
    while part := file.read(1 << 20):
        found.update(part)
    if digest is not None and digest != found.digest():
        raise ServerFailed(
            f"{name} came with SHA-256 {found.hexdigest()}, and {digest.hex()} was said: it was damaged on the way"
        )
