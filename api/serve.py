"""Settings -> a running server: processes that answer and share a socket, and one that supervises jobs.

This process only keeps those alive; when it dies they do, too, while what runs on Ray goes on and is found again.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from api.keeping import supervised
from api.logs import configure_logging
from api.settings import Settings, is_loopback
from raydml.errors import ResourceError, SpecError

STARTING = 300  # seconds that a process may take to import everything, on a machine that is busy


def serve(settings: Settings, started: Callable[[str], None]) -> None:
    """Answer requests until a signal comes; `started` is told the URL. ResourceError where the port is taken, SpecError
    where other machines can reach the address and no key was made.

    The first SIGTERM or SIGINT stops new connections and lets requests finish, for `shutdown_seconds` at most.
    """
    configure_logging(settings.log_level)
    check_address(settings)
    config = uvicorn.Config(
        partial(_application, settings),  # which other processes can unpickle
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_seconds,
        timeout_worker_healthcheck=STARTING,
        ws="none",
        lifespan="on",
    )
    try:
        socket = config.bind_socket()
    except SystemExit:  # its way to say that binding failed
        raise ResourceError(
            f"cannot listen on {settings.host}:{settings.port}: another program does; take another port, or 0 for any"
        ) from None
    socket.listen(config.backlog)  # so that requests wait from now on, rather than being refused
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    started(f"http://{host}:{socket.getsockname()[1]}")
    with ExitStack() as kept:
        if settings.supervise:
            kept.callback(supervised(settings))
        with socket, suppress(KeyboardInterrupt):  # which uvicorn raises again when it has stopped
            _Keeper(config, sockets=[socket]).run()


def check_address(settings: Settings) -> None:
    """Raises SpecError for an address that other machines can reach while there is no key that anybody could show."""
    if is_loopback(settings.host):
        return
    from raydml.jobs.database import Database
    from raydml.jobs.ids import milliseconds
    from raydml.jobs.keys import any_key

    settings.home.mkdir(parents=True, exist_ok=True)
    database = Database(settings.database_url)
    try:
        database.migrate()
        with database.reading() as session:
            if any_key(session, live_at=milliseconds()):
                return
    finally:
        database.close()
    raise SpecError(
        f"{settings.host or 'no address'} can be reached by other machines, and there is no API key yet: make one "
        f"(raydml keys create --scopes admin), or listen on 127.0.0.1 and reach it through a tunnel (ssh -L)"
    )


class _Keeper(Multiprocess):
    """Keeps processes that answer alive; a signal to stop ends listening here, too, so that nobody waits in vain.

    A process that died is replaced at the next look. uvicorn would ask a living one for a sign of life, and wait for
    all of STARTING where it dies before it answers: so it is left to ask when another one has died.
    """

    def keep_subprocess_alive(self) -> None:
        if not all(each.process.is_alive() for each in self.processes):
            super().keep_subprocess_alive()

    def terminate_all(self) -> None:
        for socket in self.sockets:
            socket.close()
        super().terminate_all()


def _application(settings: Settings) -> FastAPI:
    """In a process that answers: the libraries it needs are loaded here, not in the one that keeps it."""
    from api.app import create_app

    configure_logging(settings.log_level)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    app = create_app(settings)
    app.state.service.eager = settings.supervise  # a server that runs jobs is sent some
    _tell_of_signals(app.state.service.jobs.followers.stop)
    gc.collect()
    gc.freeze()  # what was imported stays: going through all of it again and again took a twentieth of a search
    return app


def _end_with_parent() -> None:
    """No server without its keeper: another one is to have the port."""
    keeper = multiprocessing.parent_process()
    assert keeper is not None
    keeper.join()
    os._exit(1)


def _tell_of_signals(stop: Callable[[], None]) -> None:
    """Event streams go on for ever, and uvicorn waits for what was begun: so they are ended when it is to stop."""

    def wrapped(before: Any) -> Callable[[int, FrameType | None], None]:
        def handle(number: int, frame: FrameType | None) -> None:
            stop()
            before(number, frame)

        return handle

    for number in (signal.SIGTERM, signal.SIGINT):
        if callable(before := signal.getsignal(number)):
            signal.signal(number, wrapped(before))
