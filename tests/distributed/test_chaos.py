"""Faults of all kinds at random moments: no committed step is lost, and the bits are those of an undisturbed run."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydml.spec import JobSpec
from raydml.training.record import RunRecord, read_lines
from tests.distributed.elastic_harness import Fault, Fleet, elastic_run
from tests.distributed.harness import small_spec, write_images

TORCH = "torch.distributed"
LARGEST = 4


class Chaos:
    """Does one thing after another to a run; whatever it does, one member that holds the state lives on."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self.fleet = fleet
        self.draw = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.doomed: set[str] = set()  # those that die by themselves, sooner or later
        self.holders: set[str] = set()  # those that have held the state

    def members(self) -> list[str]:
        """Members of the present group whose process lives."""
        view = self.fleet.server.view
        living = set(self.fleet.living())
        return [name for name in (view.members if view else ()) if name in living]

    def fault(self) -> None:
        """One fault, or one wish, at a random moment."""
        kinds: dict[str, Callable[[str], None]] = {
            "kill": self.fleet.kill,
            "stop_briefly": self.stop_briefly,
            "stop_for_long": self.stop_for_long,
            "drain": self.drain,
            "hang_up": self.hang_up,
        }
        members = self.members()
        victims = [name for name in members if self.survivors() - {name}]
        room = len(self.fleet.living()) < LARGEST
        if room and (not victims or self.draw.random() < 0.4):
            self.join()
        elif victims:
            kind = self.draw.choice(sorted(kinds))
            kinds[kind](self.draw.choice(victims))
            self.done[kind] += 1

    def survivors(self) -> set[str]:
        """Members that hold the state, and live on unless something is done to them."""
        view = self.fleet.server.view
        if view is not None and self.fleet.step() > view.step:
            self.holders |= set(view.members)
        return self.holders.intersection(self.members()) - self.doomed

    def join(self) -> None:
        """One more member; half of them will die in the middle of something."""
        deadly = {
            "dies_in_a_reduction": Fault(TORCH, "batch_isend_irecv", self.draw.randint(1, 400)),
            "dies_in_a_gather": Fault(TORCH, "all_gather_into_tensor", self.draw.randint(1, 400)),
            "dies_in_a_vote": Fault(TORCH, "all_reduce", self.draw.randint(1, 400)),
            "dies_as_the_source": Fault(TORCH, "isend", 1),
            "dies_while_joining": Fault(TORCH, "recv", 1),
            "dies_in_a_checkpoint": Fault("raydml.training.checkpoints", "write_json", self.draw.randint(1, 4)),
        }
        kind = self.draw.choice([*sorted(deadly), *["joins"] * len(deadly)])
        (name,) = self.fleet.start(1, deadly.get(kind))
        if kind in deadly:
            self.doomed.add(name)
        self.done[kind] += 1
        self.fleet.wait(lambda: name in self.members() or name not in self.fleet.living(), f"{name} to join")

    def stop_briefly(self, name: str) -> None:
        """Slow is not dead."""
        self.fleet.kill(name, signal.SIGSTOP)
        time.sleep(self.draw.uniform(0.05, 0.3))
        self.fleet.kill(name, signal.SIGCONT)

    def stop_for_long(self, name: str) -> None:
        """Silent for longer than the others wait; then it wakes, and finds itself given up."""
        self.fleet.kill(name, signal.SIGSTOP)
        self.fleet.wait(lambda: name not in self.members(), f"{name} to be given up")
        self.fleet.kill(name, signal.SIGCONT)

    def drain(self, name: str) -> None:
        """It leaves at the next boundary."""
        self.fleet.server.ask(lambda authority, now: authority.drain((name,), now))
        self.fleet.wait(lambda: name not in self.members(), f"{name} to leave")

    def hang_up(self, name: str) -> None:
        """Its connection to the authority breaks; it calls again."""
        self.fleet.server.hang_up(name)


def spec_of(folder: Path, steps: int) -> JobSpec:
    return small_spec(
        folder / "images.npz",
        loss={"kind": "arcface", "center": {"weight": 0.01}},
        train={"steps": steps, "evaluate_every": steps // 4, "checkpoint_every": 20},
    )


def losses_of(folder: Path) -> list[tuple[int, float]]:
    lines, _ = read_lines(RunRecord(folder).metrics_path)
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def check(folder: Path, faults: int, steps: int, seed: int) -> None:
    write_images(folder)
    spec = spec_of(folder, steps)
    with elastic_run(spec, folder / "undisturbed", first=2) as fleet:
        wanted: dict[str, Any] = fleet.finish(seconds=1500)
    with elastic_run(spec, folder / "chaos", first=3, most=LARGEST, lease=1.4, beat_timeout=2.0) as fleet:
        fleet.wait_for_step(5)
        chaos = Chaos(fleet, seed)
        while chaos.done.total() < faults:
            chaos.fault()
            time.sleep(chaos.draw.uniform(0.0, 0.3))
            assert not fleet.server.over, f"the run ended before the faults did: {chaos.done}, {fleet.server.failure}"
        found = fleet.finish(seconds=1500)
    assert found["state_sha256"] == wanted["state_sha256"] and found["sha256"] == wanted["sha256"]
    assert found["metrics"] == wanted["metrics"]
    assert losses_of(folder / "chaos") == losses_of(folder / "undisturbed"), "every step once"
    assert sum(event.lost for event in fleet.events) == 0, fleet.events
    print(f"seed {seed}: {dict(chaos.done)}, {len(fleet.events)} events")


@pytest.mark.timeout(600)
def test_a_few_faults_leave_no_trace(tmp_path: Path) -> None:
    check(tmp_path, faults=8, steps=600, seed=1)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_fifty_faults_leave_no_trace(tmp_path: Path) -> None:
    check(tmp_path, faults=60, steps=5000, seed=random.SystemRandom().randrange(10**6))
