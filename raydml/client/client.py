"""A server's URL and a key, or a folder, in; `Client` and `AsyncClient` out, with everything that the API can do."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx2

from raydml import __version__
from raydml.client.calls import Call
from raydml.client.collections import Collections
from raydml.client.datasets import Datasets
from raydml.client.jobs import Jobs
from raydml.client.keys import Keys
from raydml.client.models import Models
from raydml.client.records import Audit, Schemas
from raydml.client.resource import Resource, S, operation
from raydml.client.retries import Retries
from raydml.client.senders import AsyncSender, Sender
from raydml.client.snapshots import AliasTable
from raydml.client.sweeps import Sweeps
from raydml.client.webhooks import Webhooks
from raydml.errors import SpecError

URL, KEY = "RAYDML_URL", "RAYDML_API_KEY"
DEFAULT_URL = "http://127.0.0.1:8080"  # where `raydml serve` listens
SECONDS_TO_CONNECT = 10.0


class API(Resource[S]):
    """What a server offers."""

    @property
    def collections(self) -> Collections[S]:
        """Collections of vectors."""
        return Collections(self.sender)

    @property
    def jobs(self) -> Jobs[S]:
        """Jobs that train."""
        return Jobs(self.sender)

    @property
    def sweeps(self) -> Sweeps[S]:
        """Searches over fields of a spec."""
        return Sweeps(self.sender)

    @property
    def datasets(self) -> Datasets[S]:
        """Data to train on."""
        return Datasets(self.sender)

    @property
    def models(self) -> Models[S]:
        """Models that jobs have trained."""
        return Models(self.sender)

    @property
    def webhooks(self) -> Webhooks[S]:
        """URLs that are told of changes of state."""
        return Webhooks(self.sender)

    @property
    def keys(self) -> Keys[S]:
        """API keys of the project."""
        return Keys(self.sender)

    @property
    def aliases(self) -> AliasTable[S]:
        """Names that point to collections."""
        return AliasTable(self.sender)

    @property
    def audit(self) -> Audit[S]:
        """What the keys of the project did."""
        return Audit(self.sender)

    @property
    def schemas(self) -> Schemas[S]:
        """JSON Schemas of what the server takes and gives."""
        return Schemas(self.sender)

    @operation
    def alive(self) -> Call[bool]:
        """Whether the server answers at all."""
        return Call("GET", "/livez", lambda read: read["status"] == "alive")

    @operation
    def ready(self) -> Call[bool]:
        """Whether requests can be served; ServerBusy where they cannot."""
        return Call("GET", "/readyz", lambda read: read["status"] == "ready")

    @operation
    def prometheus(self) -> Call[str]:
        """Latencies, queues and collections of the process that answers, in Prometheus's text format."""
        return Call("GET", "/metrics", str, headers={"Accept": "text/plain"})


class Client(API[Sender]):
    """Blocks until each answer is there; threads may share it. Close it, or use it in `with`."""

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        local: str | Path | None = None,
        timeout: float = 60.0,
        retries: int | Retries = 4,
    ) -> None:
        """`url` and `key` are RAYDML_URL and RAYDML_API_KEY of the environment where they are not given.

        `local` is a folder: the same calls without a server, done by this process. `timeout` is how many seconds the
        server may be silent, but for calls that read data or whole collections (`calls.LONG`). Raises SpecError.
        """
        said = _connection(url, key, local, timeout)
        if local is not None:
            from raydml.client.local import Local, Transport

            said["transport"] = Transport(Local(Path(local)))
        super().__init__(Sender(httpx2.Client(**said), _retries(retries)))

    def close(self) -> None:
        """Give back connections, and stop what runs locally."""
        self.sender.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class AsyncClient(API[AsyncSender]):
    """The same, awaited on asyncio; the tasks of one event loop may share it. Close it, or use it in `async with`."""

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        local: str | Path | None = None,
        timeout: float = 60.0,
        retries: int | Retries = 4,
    ) -> None:
        """As `Client` is made."""
        said = _connection(url, key, local, timeout)
        if local is not None:
            from raydml.client.local import AsyncTransport, Local

            said["transport"] = AsyncTransport(Local(Path(local)))
        super().__init__(AsyncSender(httpx2.AsyncClient(**said), _retries(retries)))

    async def close(self) -> None:
        """Give back connections, and stop what runs locally."""
        await self.sender.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()


def _connection(url: str | None, key: str | None, local: object, timeout: float) -> dict[str, Any]:
    """What httpx2's clients are told. Raises SpecError; the key is not shown."""
    if local is not None and url:
        raise SpecError("give url=, or local=, not both")
    url = DEFAULT_URL if local is not None else url or os.environ.get(URL) or DEFAULT_URL
    key = key or (os.environ.get(KEY) if local is None else None)
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known or parts.username or parts.query or parts.fragment:
        raise SpecError(f"url (or {URL}) is {url!r}: write http://host:port or https://host")
    if key is not None and not re.fullmatch(r"[!-~]+", key):
        raise SpecError(f"key (or {KEY}) must be printable ASCII without spaces: create one with raydml keys create")
    if timeout <= 0:
        raise SpecError(f"timeout is {timeout:g}: give seconds above 0")
    headers = {"User-Agent": f"raydml/{__version__}", **({"Authorization": f"Bearer {key}"} if key else {})}
    own_machine = parts.hostname in ("127.0.0.1", "localhost", "::1")
    return {
        "base_url": url,
        "headers": headers,
        "timeout": httpx2.Timeout(timeout, connect=min(timeout, SECONDS_TO_CONNECT)),
        "trust_env": not own_machine,  # no proxy lies between a machine and itself
    }


def _retries(given: int | Retries) -> Retries:
    if isinstance(given, Retries):
        return given
    if given < 0:
        raise SpecError(f"retries is {given}: give 0 or more")
    return Retries(times=given)
