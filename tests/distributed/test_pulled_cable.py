"""A cable is pulled between two hosts, which are network namespaces here: nobody hears of it but by silence."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from raydml.training.record import RunRecord, read_lines
from tests.distributed.elastic_harness import elastic_run
from tests.distributed.harness import small_spec, write_images

OTHER, HERE, THERE = "raydml-test", "rdt-here", "rdt-there"  # the other host, and both ends of the cable
ADDRESS = "10.77.0.1"
CLONE_NEWNET = 0x40000000  # sched.h
PATIENCE = 2.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="hosts of namespaces need root and ip"),
]


def run(command: str) -> None:
    subprocess.run(command.split(), check=True)


@dataclass(frozen=True)
class Host:
    """Puts a process on one of the two hosts."""

    namespace: str | None

    def arm(self) -> None:
        if self.namespace is not None:
            with open(f"/var/run/netns/{self.namespace}") as entry:
                assert ctypes.CDLL(None, use_errno=True).setns(entry.fileno(), CLONE_NEWNET) == 0, ctypes.get_errno()


@pytest.fixture
def cable() -> Iterator[None]:
    run(f"ip netns add {OTHER}")
    try:
        run(f"ip link add {HERE} type veth peer name {THERE}")
        run(f"ip link set {THERE} netns {OTHER}")
        run(f"ip addr add {ADDRESS}/24 dev {HERE}")
        run(f"ip link set {HERE} up")
        run(f"ip netns exec {OTHER} ip addr add 10.77.0.2/24 dev {THERE}")
        run(f"ip netns exec {OTHER} ip link set {THERE} up")
        run(f"ip netns exec {OTHER} ip link set lo up")
        yield
    finally:
        subprocess.run(["ip", "link", "del", HERE], check=False)
        run(f"ip netns del {OTHER}")


def test_a_worker_behind_a_pulled_cable_is_given_up_and_never_goes_on_alone(cable: None, tmp_path: Path) -> None:
    write_images(tmp_path)
    spec = small_spec(tmp_path / "images.npz", train={"steps": 1000, "evaluate_every": 0, "checkpoint_every": 200})
    with elastic_run(spec, tmp_path / "undisturbed", first=2) as fleet:
        wanted = fleet.finish()
    hosts = [Host(None), Host(OTHER)]
    with elastic_run(
        spec, tmp_path / "cut", 2, faults=hosts, host=ADDRESS, beat_timeout=PATIENCE, lease=0.75 * PATIENCE
    ) as fleet:
        fleet.wait_for_step(50)
        run(f"ip netns exec {OTHER} ip link set {THERE} down")
        fleet.wait_for_size(1)
        fleet.wait_for_step(fleet.step() + 20)
        run(f"ip netns exec {OTHER} ip link set {THERE} up")  # it wakes, and finds itself given up
        found = fleet.finish()
    lost = fleet.changes[1]
    assert (lost.cause, lost.members, lost.lost) == ("lost", ("worker-00001",), 0)
    assert lost.down >= 0.9 * PATIENCE, "slow is not dead before"
    assert found["state_sha256"] == wanted["state_sha256"]
    steps = [line["step"] for line in read_lines(RunRecord(tmp_path / "cut").metrics_path)[0] if "loss" in line]
    assert steps == list(range(1, 1001)), "one group took every step once"
