"""A thread that tells one tracker what is new in a run, and tries again what the tracker refused.

It knows how far the tracker came: a file in the run's folder says which line was the last, so that a resumed run goes
on behind it in the same tracked run.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from raydml.files import write_json
from raydml.tracking.points import Feed, Point, Position
from raydml.tracking.tracker import Facts, Tracker
from raydml.training.record import RunRecord

logger = logging.getLogger(__name__)

EVERY = 2.0  # seconds between two looks for what is new
_AGAIN = 10.0  # seconds after a failure
Open = Callable[[Facts], Tracker]


class Sender:
    """Sends from a thread of its own until `close`. Nothing that a tracker does reaches the caller."""

    def __init__(self, kind: str, open_tracker: Open, record: RunRecord, rows: int, facts: Facts) -> None:
        self.kind = kind
        self.problem: str | None = None  # that is not mended
        self._open, self._record = open_tracker, record
        self._path = record.folder / "tracking" / f"{kind}.json"
        self._feed = Feed(record.metrics_path, rows, Position())
        self._facts, self._rows = facts, rows
        self._tracker: Tracker | None = None
        self._state: str | None = None  # that the run ended in
        self._ending, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"raydml-{kind}")
        self._thread.start()

    def close(self, state: str, patience: float) -> None:
        """The run has ended: send the rest, for `patience` seconds at most, and leave what is then not sent."""
        self._state = state
        self._ending.set()
        self._thread.join(patience)
        if self._thread.is_alive():
            self._over.set()
            self._tell(self.problem or f"no answer within {patience:g} s; some numbers may be missing there")

    def _run(self) -> None:
        while not self._over.is_set():
            ending = self._ending.is_set()  # before the file is read, so that nothing of it is missed
            try:
                self._turn()
                if ending and self._tracker is not None:
                    assert self._state is not None
                    self._last_word(self._tracker, self._state)
                    self.problem = None
                    return
                self.problem = None
            except Exception as error:  # of any tracker, for any reason: training goes on
                self._tracker = None  # begun anew, it goes on behind what it has
                self._tell(f"{type(error).__name__}: {error}")
            if ending:
                self._over.wait(EVERY)
            else:
                self._ending.wait(EVERY if self.problem is None else _AGAIN)

    def _turn(self) -> None:
        known = self._known()
        if self._tracker is None:
            position = Position(known["step"], known["lines"])
            self._feed = Feed(self._record.metrics_path, self._rows, position)
            self._tracker = self._open(replace(self._facts, key=known["key"]))
        points = self._feed.read()
        if points:
            self._tracker.log(points)
            write_json(self._path, known | asdict(self._feed.position))

    def _last_word(self, tracker: Tracker, state: str) -> None:
        """The results of a run that has them, at its last sample; then its state."""
        facts, now = self._record.read(), self._feed.position.step * self._rows
        results: dict[str, float] = {}
        for kind, part in (("test", "metrics"), ("baseline", "baseline")):
            results |= {f"{kind}/{name}": value for name, value in (facts.get(part) or {}).items()}
        if state == "succeeded" and results:
            tracker.log([Point(now, facts["updated"], results)])
        tracker.end(state)

    def _known(self) -> dict[str, Any]:
        """How far this tracker came; the run's key is on the disk before the tracker hears of it."""
        if not self._path.exists():
            self._path.parent.mkdir(exist_ok=True)
            write_json(self._path, {"key": secrets.token_hex(16), **asdict(Position())})
        known: dict[str, Any] = json.loads(self._path.read_text())
        return known

    def _tell(self, problem: str) -> None:
        if problem != self.problem:
            logger.warning("event=tracker_failed tracker=%s run=%s reason=%r", self.kind, self._facts.name, problem)
        self.problem = problem
