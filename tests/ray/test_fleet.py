"""A fleet on a cluster of several nodes: workers die, nodes come, drain and die, and nothing of it stays behind."""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.state import state as cluster_state

from raydml.training.fleet import keeping
from raydml.training.fleet.keeping import Fleet, Turn
from raydml.training.fleet.nodes import look
from raydml.training.fleet.placement import Placement
from tests.ray.fleet_work import follow
from tests.ray.machines import Machines

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400), pytest.mark.filterwarnings("default")]


class Driver:
    """What the driver of a run does with its fleet: it ticks, and passes on who is to leave."""

    def __init__(self, folder: Path, minimum: int, maximum: int) -> None:
        self.signals = folder / "signals"
        self.signals.mkdir()
        self.scratch = folder / "scratch"
        placement = Placement(minimum, False, {"CPU": 1.0}, minimum, maximum)
        self.fleet = Fleet(functools.partial(follow, str(self.signals)), placement, self.scratch)
        self.turn: Turn
        self.dead: list[str] = []
        self.members: set[str] = set()  # of the present group
        self.passes_on = True

    def until(self, holds: Callable[[], bool], what: str, seconds: float = 120.0) -> float:
        """Tick until it holds; the seconds that it took."""
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            self.turn = self.fleet.tick(time.monotonic(), self.members)
            self.dead += self.turn.dead
            for name in self.turn.leave if self.passes_on else ():
                (self.signals / f"{name}.leave").touch()
            if holds():
                return time.monotonic() - start
            time.sleep(0.05)
        raise AssertionError(f"{what}: {self.turn}, {sorted(self.at_work())}")

    def at_work(self) -> dict[str, dict[str, Any]]:
        """Every worker that ever began, and its process."""
        return {path.stem: json.loads(path.read_text()) for path in self.signals.glob("*.json")}

    def living(self) -> set[str]:
        """Workers whose process lives: all nodes of the test are on this machine."""
        return {name for name, facts in self.at_work().items() if lives(facts["pid"])}

    def wait_for_the_dead(self) -> None:
        """Ray calls an actor dead when its process is about to end: wait until every worker's process has."""
        deadline = time.monotonic() + 60
        while living := self.living():
            assert time.monotonic() < deadline, f"still there: {living}"
            time.sleep(0.1)

    def finish(self) -> float:
        """Let all work end, and end the fleet; the seconds that it took."""
        (self.signals / "done").touch()
        start = time.monotonic()
        assert self.fleet.end(), "the fleet left something behind"
        return time.monotonic() - start


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def left_behind(seconds: float = 60.0) -> list[str]:
    """What of a fleet is still in the cluster, after at most so many seconds; Ray's own actors are named _Like so."""
    deadline = time.monotonic() + seconds
    while True:
        actors = [
            actor["ActorClassName"] for actor in cluster_state.actor_table(None).values() if actor["State"] != "DEAD"
        ]
        rooms = [room["state"] for room in ray.util.placement_group_table().values() if room["state"] != "REMOVED"]
        left = [name for name in actors if not name.startswith("_")] + rooms
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def test_workers_die_and_nodes_come_drain_and_die_and_the_run_ends(machines: Machines, tmp_path: Path) -> None:
    driver = Driver(tmp_path, minimum=2, maximum=3)
    driver.until(lambda: len(driver.living()) == 2 and driver.turn.pending == ("extra-00000",), "the group stands")
    victim, survivor = sorted(driver.living())
    os.kill(driver.at_work()[victim]["pid"], signal.SIGKILL)
    took = driver.until(lambda: len(driver.living()) == 2 and victim not in driver.living(), "the dead is replaced")
    (replacement,) = driver.living() - {survivor}
    cpu = driver.at_work()[replacement]["cpu_seconds"]
    print(f"SIGKILL of a group worker to its replacement's first line: {took:.1f} s, {cpu:.1f} CPU-s of its process")
    assert survivor in driver.living() and survivor in driver.turn.nodes, "Ray replaced the survivor too"
    assert victim not in driver.turn.nodes
    driver.until(lambda: driver.dead == [victim], "its death is proven")

    start = time.monotonic()
    third = machines.arrive()
    arrived = time.monotonic()
    driver.until(lambda: "extra-00000" in driver.living(), "the extra has room")
    took, cpu = time.monotonic() - start, driver.at_work()["extra-00000"]["cpu_seconds"]
    print(f"a node to its extra's first line: {took:.1f} s, node {arrived - start:.1f} s, extra {cpu:.1f} CPU-s")
    assert driver.turn.nodes["extra-00000"] == third and not driver.turn.pending

    machines.drain(third)
    assert look().draining == {third}
    driver.until(lambda: "extra-00000" in driver.turn.leave, "the draining node is noticed")
    driver.until(lambda: driver.turn.pending == ("extra-00001",), "the extra leaves, and another waits for room")
    driver.fleet.resize(2)
    driver.until(lambda: not driver.turn.pending and not driver.turn.leave, "fewer are wanted")

    machines.kill(driver.turn.nodes[survivor])
    driver.until(lambda: survivor not in driver.living(), "the node's worker is gone")
    (last,) = driver.living()
    until = time.monotonic() + 4  # Ray Train has noticed, and waits for room that does not come
    driver.until(lambda: time.monotonic() > until, "time passes")
    took = driver.finish()
    print(f"the end of a run whose lost worker has no room: {took:.1f} s")
    assert set(driver.dead) <= {victim, "extra-00000"}, "a node's death proves no worker's death"
    assert last in driver.at_work()
    driver.wait_for_the_dead()
    assert left_behind() == [] and not driver.scratch.exists() and ray.is_initialized()
    machines.kill(third)  # it went by itself once it was empty, if the machine was quick


@pytest.mark.slow
def test_ray_train_is_restarted_a_drained_worker_waits_and_a_run_without_room_for_its_group_ends(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    while len(machines.nodes) < 2:
        machines.arrive()
    driver = Driver(tmp_path, minimum=1, maximum=2)
    driver.until(lambda: len(driver.living()) == 2, "one of the group and one extra")
    (member,) = (name for name in driver.living() if name.startswith("group"))
    controller = json.loads((driver.scratch / "group-1" / "workers.json").read_text())["controller"]
    os.kill(controller, signal.SIGKILL)
    driver.until(lambda: len(driver.living() - {member}) == 2, "Ray Train is started anew beside the extra")
    assert member not in driver.living() and "extra-00000" in driver.living()
    (member,) = (name for name in driver.living() if name.startswith("group"))
    home = driver.turn.nodes[member]
    machines.drain(home)
    driver.until(lambda: member in driver.turn.leave and driver.turn.pending == ("extra-00001",), "an extra is to help")
    until = time.monotonic() + 2
    driver.until(lambda: time.monotonic() > until, "time passes")
    assert member in driver.living() and member in driver.turn.nodes, "a function that returned is replaced no more"
    machines.kill(home)
    driver.until(lambda: member not in driver.living(), "the node's worker is gone")
    driver.fleet.resize(1)  # as a service does that has room for one worker left
    driver.until(lambda: not driver.turn.pending, "the extra that did not work yet is stopped")
    until = time.monotonic() + 8
    driver.until(lambda: time.monotonic() > until, "time passes")
    assert "extra-00000" in driver.living() and not driver.turn.leave, "it may be all that holds the state"
    driver.passes_on = False  # a member leaves once another one holds the state
    monkeypatch.setattr(keeping, "LEAVE_SECONDS", 1.0)
    driver.members = {"extra-00000"}
    machines.drain(driver.turn.nodes["extra-00000"])
    driver.until(lambda: "extra-00000" in driver.turn.leave, "its node is to go")
    until = time.monotonic() + 4
    driver.until(lambda: time.monotonic() > until, "time passes")
    assert "extra-00000" in driver.living(), "it was stopped, and nobody else held the state"
    driver.members = {"extra-00000", "group-00000"}
    driver.until(lambda: "extra-00000" not in driver.living(), "others hold the state: what does not leave is stopped")
    took = driver.finish()
    print(f"the end of a run whose whole group has no room: {took:.1f} s")
    assert left_behind() == []
    driver.wait_for_the_dead()
