"""What tests of the HTTP application share: an application in this process, and real servers on free ports."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog
from fastapi import FastAPI

from api import Settings, create_app


@pytest.fixture(autouse=True)
def _logging_begins_anew() -> Iterator[None]:
    """A test that configures logging, or looks at it, leaves that to no other."""
    yield
    structlog.reset_defaults()


Connect = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]


@pytest.fixture
def connect(home: Path) -> Connect:
    """A client of a new application: `async with connect(max_k=5) as client`."""

    @asynccontextmanager
    async def connected(prepare: Callable[[FastAPI], None] = lambda app: None, **settings: Any) -> AsyncIterator[Any]:
        app = create_app(Settings(home=home, **settings))
        prepare(app)
        async with app.router.lifespan_context(app), client_of(app) as client:
            yield client

    return connected


def client_of(app: FastAPI) -> httpx2.AsyncClient:
    """A client that calls the application without a socket."""
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=True)
    return httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1")


@contextmanager
def server(home: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A real `raydml serve` on a free port: its URL, and its process with the log on stderr."""
    command = [sys.executable, "-c", "from raydml.cli import main; main()", "serve", "--port", "0", *options]
    log = home / "server.log"
    home.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "RAYDML_HOME": str(home)}
    with log.open("w") as file, subprocess.Popen(command, stderr=file, text=True, env=environment) as process:
        try:
            yield _url(log, process), process
        finally:
            process.terminate()
            process.wait(60)


def _url(log: Path, process: subprocess.Popen[str]) -> str:
    while process.poll() is None:
        found = re.search(r"(http://\S+) serves", log.read_text())
        if found and _answers(found[1]):
            return found[1]
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def _answers(url: str) -> bool:
    """Whether the server answers yet."""
    try:
        return httpx2.get(f"{url}/livez", timeout=10).status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture
def anyio_backend() -> str:
    """Tests that are coroutines run on asyncio, as uvicorn does."""
    return "asyncio"
