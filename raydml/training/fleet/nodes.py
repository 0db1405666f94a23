"""Which nodes of the cluster live and which are being drained: asked about once a second, in a thread.

Ray Train's own watch for draining nodes is off for replica groups.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

import ray
from ray._private.state import state as cluster_state

logger = logging.getLogger(__name__)

EVERY = 1.0  # seconds between questions


@dataclass(frozen=True)
class Nodes:
    """Ids of nodes, in hexadecimal: those that live, and those of them that are to be taken away."""

    alive: frozenset[str] = frozenset()
    draining: frozenset[str] = frozenset()


def look() -> Nodes:
    """Ask the cluster's head."""
    alive = frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])
    return Nodes(alive, frozenset(cluster_state.get_draining_nodes()) & alive)


class NodeWatch:
    """Keeps the newest answer, and counts them: a head that does not answer holds up this thread, and nobody else."""

    def __init__(self) -> None:
        self.seen = look()
        self.count = 1
        self._stopped = threading.Event()
        threading.Thread(target=self._run, daemon=True, name="raydml-nodes").start()

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(EVERY):
            try:
                self.seen = look()
                self.count += 1
            except Exception:
                if self._stopped.is_set():
                    return
                logger.exception("event=nodes_unseen")
