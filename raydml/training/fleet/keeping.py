"""A run's workers on Ray, kept at the number that is wanted: the group of the minimum, and extras beyond it.

The driver calls `tick` a few times a second and acts on what comes back; `staffing` decides, this file acts.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from raydml.errors import RunError
from raydml.training.fleet.extras import DIED, ExtraHandle
from raydml.training.fleet.group import PATIENCE, Group
from raydml.training.fleet.nodes import NodeWatch
from raydml.training.fleet.placement import Placement
from raydml.training.fleet.staffing import LEFT, LOST, Decision, Leave, Start, Stop, decide, pause
from raydml.training.fleet.work import Work

logger = logging.getLogger(__name__)

LEAVE_SECONDS = 60.0  # an extra that was asked to leave and has not by then is stopped
GROUP_FAILURES = 3  # controllers that may end before they placed a worker
END_SECONDS = 30.0


@dataclass(frozen=True)
class Turn:
    """What the driver has to tell the authority, and may show. All are names of workers.

    `leave`: ask them to leave at the next step boundary, because their node is drained or fewer are wanted (`drain`,
    `resize`); the same names come with every turn, until the process of an extra has ended and until a group worker's
    draining node has gone.
    `dead`: their processes are known to have ended, on nodes that live; each name comes once. Workers of a node that
    died are not among them: it may be cut off rather than dead, and then only the lease stops them.
    `nodes`: where every worker runs, by node id; one of the group that died stays in it until it is replaced.
    `pending`: extras that wait for room.
    """

    leave: dict[str, str]
    dead: tuple[str, ...]
    nodes: dict[str, str]
    pending: tuple[str, ...]


@dataclass(frozen=True)
class Gone:
    """A process that ended, and how many looks at the nodes had been taken when that was seen."""

    name: str
    node: str
    looks: int


class Fleet:
    """Starts at once; `end` must be called, whatever happened.

    `work` is what every worker process runs, with a name that no other process of this fleet ever has. `folder` is a
    scratch folder on the driver's node, for this fleet alone.
    """

    def __init__(self, work: Work, placement: Placement, folder: Path) -> None:
        self._work, self._placement, self._folder = work, placement, folder
        shutil.rmtree(folder, ignore_errors=True)
        self._wanted = placement.maximum
        self._watch = NodeWatch()
        self._group_number = 1
        self._group_failures = 0
        self._group = self._start_group()
        self._group_nodes: dict[str, str] = {}
        self._group_stood = False
        self._extras: list[ExtraHandle] = []
        self._next_extra = 0
        self._endings: deque[float] = deque(maxlen=16)
        self._gone: list[Gone] = []
        self._finished = False

    def resize(self, wanted: int) -> None:
        """Change the number of workers, from the next turn on. RunError outside of the minimum and the maximum."""
        if not self._placement.minimum <= wanted <= self._placement.maximum:
            raise RunError(
                f"{wanted} workers are outside of parallel.workers, "
                f"{self._placement.minimum} to {self._placement.maximum}"
            )
        self._wanted = wanted

    def tick(self, now: float, members: Collection[str] = ()) -> Turn:
        """One turn at monotonic second `now`: see, decide, act. Never waits. RunError: Ray Train cannot be started.

        `members` are the workers of the present group: one that was asked to leave, and does not, is stopped after
        `LEAVE_SECONDS`, but not while it may be all that holds the state.
        """
        self._see_group(now)
        self._see_extras(now)
        alive, draining = self._watch.seen.alive, self._watch.seen.draining
        away = [name for name, node in self._group_nodes.items() if node in draining]
        gone = sum(node not in alive for node in self._group_nodes.values())
        leaving = {extra.name for extra in self._extras if extra.leaving_since is not None}
        others_stay = not leaving.union(away).issuperset(members)
        for extra in self._extras:
            if extra.node in draining or extra.leaving_since is not None:
                self._ask_to_leave(extra, now, needed=extra.name in members and not others_stay)
        seen = [extra.look() for extra in self._extras]
        if not self._finished:  # once a worker has returned, the run is over
            may_start = pause(self._endings, now) == 0.0
            # Before the group stands, an extra that does not fit beside it would take its room.
            wanted = self._wanted if self._group_stood else min(self._wanted, self._placement.workers)
            for decision in decide(wanted, self._placement.minimum, len(away), seen, may_start, gone):
                self._act(decision, now)
        return Turn(
            leave=dict.fromkeys(away, "drain")
            | {
                extra.name: "drain" if extra.node in draining else "resize"
                for extra in self._extras
                if extra.leaving_since is not None
            },
            dead=self._proven_dead(),
            nodes=self._group_nodes | {extra.name: extra.node for extra in self._extras if extra.node is not None},
            pending=tuple(extra.name for extra in self._extras if extra.node is None),
        )

    def end(self, seconds: float = END_SECONDS) -> bool:
        """The run is over: stop whatever still works. Whether nothing is left, after about so many seconds at most.

        Workers have `PATIENCE` to return by themselves; where all do, this takes less. Call it from a `finally`.
        """
        deadline = time.monotonic() + PATIENCE
        self._watch.stop()
        left: list[object] = [] if self._group.end(seconds) else [self._group]
        for extra in self._extras:
            if extra.node is not None:
                extra.wait(max(0.0, deadline - time.monotonic()))
            extra.stop()
        left += [extra for extra in self._extras if not extra.wait(PATIENCE)]
        if left:
            logger.warning("event=workers_left_behind parts=%d", len(left))
        else:
            shutil.rmtree(self._folder, ignore_errors=True)
        return not left

    def _start_group(self) -> Group:
        return Group(self._work, self._placement, self._folder / f"group-{self._group_number}")

    def _see_group(self, now: float) -> None:
        """Who is in the group; starts another one where Ray Train itself ended though the run goes on."""
        self._finished = self._finished or (not self._group.running and self._group.failure is None)
        if self._group.failure is not None and pause(self._endings, now) == 0.0:
            self._restart_group(now)
        before, self._group_nodes = self._group_nodes, self._group.workers().nodes
        self._group_stood = self._group_stood or bool(self._group_nodes)
        for name, node in before.items():
            if name not in self._group_nodes:
                self._gone.append(Gone(name, node, self._watch.count))

    def _restart_group(self, now: float) -> None:
        self._group_failures = 0 if self._group_nodes else self._group_failures + 1
        if self._group_failures == GROUP_FAILURES:
            raise RunError(f"Ray Train ended {GROUP_FAILURES} times before it had workers: {self._group.failure}")
        logger.warning("event=group_restarted reason=%r", self._group.failure)
        self._endings.append(now)
        self._group.end(0.0)
        self._group_number += 1
        self._group_nodes = {}  # Ray stops them because their controller died, and that is no proof that they did
        self._group = self._start_group()

    def _see_extras(self, now: float) -> None:
        """Drop the extras that ended."""
        unasked = False
        for extra in list(self._extras):
            how = extra.ended()
            if how is None:
                continue
            self._extras.remove(extra)
            extra.stop()
            self._finished = self._finished or how not in (LEFT, LOST, DIED)
            unasked = unasked or extra.leaving_since is None
            logger.info("event=extra_ended name=%s how=%s", extra.name, how)
            if extra.node is not None:
                self._gone.append(Gone(extra.name, extra.node, self._watch.count))
        if unasked:
            self._endings.append(now)

    def _act(self, decision: Decision, now: float) -> None:
        if isinstance(decision, Start):
            extra = ExtraHandle(f"extra-{self._next_extra:05d}")
            extra.start(self._work, self._placement)
            self._extras.append(extra)
            self._next_extra += 1
            return
        extra = next(extra for extra in self._extras if extra.name == decision.name)
        if isinstance(decision, Stop):
            extra.stop()
            extra.leaving_since = now
        elif isinstance(decision, Leave):
            self._ask_to_leave(extra, now)

    def _ask_to_leave(self, extra: ExtraHandle, now: float, needed: bool = False) -> None:
        if extra.leaving_since is None or needed:
            extra.leaving_since = now
        elif now - extra.leaving_since > LEAVE_SECONDS:
            extra.stop()

    def _proven_dead(self) -> tuple[str, ...]:
        """Names of ended processes whose node still lived when it was asked about later."""
        asked = [gone for gone in self._gone if self._watch.count >= gone.looks + 2]
        self._gone = [gone for gone in self._gone if gone not in asked]
        return tuple(gone.name for gone in asked if gone.node in self._watch.seen.alive)
