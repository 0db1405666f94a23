"""Changes of many threads -> transactions: one writer at a time over all processes, one sync for all that wait.

Whoever gets the turn commits everything that has queued meanwhile, each change under a savepoint of its own, so that a
refused one leaves nothing and does not harm the others. A change is acknowledged when the commit is on the disk.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from raydml.errors import CollectionBusy, ResourceError
from raydml.search.changes import Change
from raydml.search.database import connect, translating
from raydml.search.view import View

LOCK = "LOCK"
Answer = TypeVar("Answer")


class Waiting:
    """A change in the queue, and what became of it."""

    def __init__(self, work: Callable[[Change], Any]) -> None:
        self.work = work
        self.answer: Any = None
        self.error: BaseException | None = None
        self.done = False


class Writer:
    """The writing side of one collection in one process."""

    def __init__(
        self, folder: Path, patience: float, latest: Callable[[], View], publish: Callable[[View], None]
    ) -> None:
        self._folder = folder
        self._patience = patience
        self._latest = latest
        self._publish = publish
        self._turn = threading.RLock()
        self._owner: int | None = None  # the thread whose transaction is open
        self._queue: list[Waiting] = []
        self._queueing = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._view: View | None = None  # within a transaction

    def change(self, work: Callable[[Change], Answer]) -> Answer:
        """Do the work in a transaction, perhaps with others' work; durable when this returns."""
        waiting = Waiting(work)
        if self._owner == threading.get_ident():  # within this thread's own transaction, whose fate it shares
            self._do(waiting)
        else:
            with self._queueing:
                self._queue.append(waiting)
            with self._turn:
                if not waiting.done:
                    with self._queueing:
                        batch, self._queue = self._queue, []
                    self._commit(batch)
        if waiting.error is not None:
            raise waiting.error
        answer: Answer = waiting.answer
        return answer

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes of this thread in the block are one commit, at its end; an error undoes them all."""
        if self._owner == threading.get_ident():
            yield
            return
        with self._turn, writing(self._folder, self._patience), translating(self._folder):
            connection = self._begin()
            self._owner = threading.get_ident()
            try:
                yield
                connection.execute("COMMIT")
                self._publish(self._view)  # type: ignore[arg-type]
            finally:
                self._owner = None
                self._view = None
                with suppress(sqlite3.Error):  # the first error matters, and closing undoes the change too
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")

    def close(self) -> None:
        """Give back the connection."""
        with self._turn:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _commit(self, batch: list[Waiting]) -> None:
        try:
            with self.transaction():
                for waiting in batch:
                    self._do(waiting)
        except BaseException as error:
            for waiting in batch:
                waiting.error = waiting.error or error
        finally:
            for waiting in batch:
                waiting.done = True

    def _do(self, waiting: Waiting) -> None:
        """One change; an error of its own undoes it alone. SQLite's errors end the transaction."""
        assert self._connection is not None and self._view is not None
        self._connection.execute("SAVEPOINT change")
        try:
            self._view = self._view.refreshed(self._connection)
            waiting.answer = waiting.work(Change(self._connection, self._view))
            self._view = self._view.refreshed(self._connection)
        except sqlite3.Error:
            raise
        except Exception as error:
            waiting.error = error
            self._connection.execute("ROLLBACK TO change")
            self._view = self._latest_in(self._connection)
        self._connection.execute("RELEASE change")

    def _begin(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = connect(self._folder)
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._view = self._latest_in(self._connection)
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        return self._connection

    def _latest_in(self, connection: sqlite3.Connection) -> View:
        """The published view, brought forward to what the transaction sees."""
        return self._latest().refreshed(connection)


@contextmanager
def writing(folder: Path, patience: float, name: str = LOCK) -> Iterator[None]:
    """Hold the collection's lock; CollectionBusy where another process has it for longer than `patience` seconds."""
    try:
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ResourceError(f"cannot write in {folder}: {error.strerror}; correct its permissions") from error
    end = time.monotonic() + patience
    try:
        while not _locked(descriptor):
            if time.monotonic() >= end:
                raise CollectionBusy(f"{folder} has another writer at work: try again when it is done")
            time.sleep(0.005)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
