"""Workers come, go, stop and die while the others train on: the same bits as a run that nothing happened to."""

from __future__ import annotations

import random
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raydml.parallel import DataParallel
from raydml.spec import JobSpec
from raydml.training.checkpoints import Checkpoints
from raydml.training.record import RunRecord, read_lines
from tests.distributed.elastic_harness import Fault, Fleet, elastic_run
from tests.distributed.harness import small_spec, write_images

pytestmark = pytest.mark.timeout(900)

STEPS = 120
TORCH = "torch.distributed"
TRAIN = {"steps": STEPS, "evaluate_every": 40, "checkpoint_every": 15, "optimizer": {"kind": "adamw", "lr": 0.003}}

# Momentum, batch norm, dropout, a miner; a loss that owns weights, a loss scale, SGD's momentum, centres.
SPECS: dict[str, dict[str, Any]] = {
    "cnn_triplet": {
        "model": {"backbone": {"kind": "small_cnn", "width": 16, "dropout": 0.1}, "dimension": 8},
        "loss": {"kind": "triplet", "margin": 0.2, "miner": {"kind": "semihard"}},
    },
    "fp16_arcface": {
        "loss": {"kind": "arcface", "center": {"weight": 0.01}},
        "parallel.precision": "fp16",
        "train": {**TRAIN, "optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9}},
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("elastic")
    write_images(path)
    return path


def spec_of(folder: Path, case: str) -> JobSpec:
    return small_spec(folder / "images.npz", **{"train": TRAIN, **SPECS[case]})


class Undisturbed:
    """What a run of two workers ends with that nothing happens to."""

    def __init__(self, folder: Path, case: str) -> None:
        self.spec = spec_of(folder, case)
        with elastic_run(self.spec, Path(tempfile.mkdtemp(dir=folder)), first=2) as fleet:
            self.facts = fleet.finish()
            self.losses = losses_of(fleet)
        assert [event.cause for event in fleet.changes] == ["start"]

    def check(self, fleet: Fleet) -> None:
        """The run ended with the same bits, and took every step once, with the same batch."""
        facts = fleet.finish()
        assert losses_of(fleet) == self.losses, "every step once, with the loss of the same items"
        for name in ("state_sha256", "sha256", "metrics", "exported_step"):
            assert facts[name] == self.facts[name], name


def losses_of(fleet: Fleet) -> list[tuple[int, float]]:
    lines, _ = read_lines(RunRecord(fleet.job.folder).metrics_path)
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


@pytest.fixture(scope="module", params=sorted(SPECS))
def either(request: pytest.FixtureRequest, folder: Path) -> Undisturbed:
    return Undisturbed(folder, str(request.param))


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Undisturbed:
    return Undisturbed(folder, "fp16_arcface")


def causes(fleet: Fleet) -> list[str]:
    return [event.cause for event in fleet.events]


def test_a_run_that_grows_and_shrinks_ends_with_the_same_bits(either: Undisturbed, tmp_path: Path) -> None:
    with elastic_run(either.spec, tmp_path / "run", first=1) as fleet:
        fleet.wait_for_step(10)
        fleet.start(2)
        fleet.wait_for_size(3)
        fleet.wait_for_step(fleet.step() + 10)
        fleet.server.ask(lambda authority, now: authority.resize(2, now))
        fleet.wait_for_size(2)
        either.check(fleet)
    first, *joins, last = [(event.cause, event.before, event.after) for event in fleet.changes]
    assert first == ("start", 0, 1) and last == ("resize", 3, 2)
    assert joins in ([("join", 1, 3)], [("join", 1, 2), ("join", 2, 3)])
    assert all(event.lost == 0 for event in fleet.events)


def test_workers_that_are_killed_and_replaced_leave_no_trace(either: Undisturbed, tmp_path: Path) -> None:
    with elastic_run(either.spec, tmp_path / "run", first=2) as fleet:
        killed = []
        for step in (12, 37, 70):
            fleet.wait_for_step(step)
            killed.append(fleet.living()[0])  # the one that writes
            fleet.kill(killed[-1])
            fleet.start(1)
        either.check(fleet)
    lost = [member for event in fleet.events if event.cause == "lost" for member in event.members]
    assert lost == killed, fleet.events
    assert all(event.lost == 0 for event in fleet.events)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(TORCH, "batch_isend_irecv", 25),
        Fault(TORCH, "all_gather_into_tensor", 60),
        Fault(TORCH, "all_reduce", 40),
    ],
    ids=["in_the_reduction", "in_a_gather", "in_the_vote"],
)
def test_a_worker_that_dies_in_a_collective_takes_no_step_with_it(
    undisturbed: Undisturbed, tmp_path: Path, fault: Fault
) -> None:
    with elastic_run(undisturbed.spec, tmp_path / "run", first=3, faults=[fault]) as fleet:
        undisturbed.check(fleet)
    assert [(event.before, event.after, event.lost) for event in fleet.changes] == [(0, 3, 0), (3, 2, 0)]


def test_a_writer_that_dies_in_a_checkpoint_is_followed_by_another(undisturbed: Undisturbed, tmp_path: Path) -> None:
    with elastic_run(
        undisturbed.spec, tmp_path / "run", first=1, faults=[Fault("raydml.training.checkpoints", "write_json", 2)]
    ) as fleet:
        fleet.wait_for_size(1)  # else the second one may come first, and write in place of the faulty one
        fleet.start(1)
        undisturbed.check(fleet)
    assert len(fleet.living()) == 0 and "start" in causes(fleet)
    assert {"lost", "death", "restart"} & set(causes(fleet)), "the writer died"
    assert not list((fleet.job.folder / "checkpoints").glob(".tmp-*")), "what it left half written is swept"


def test_a_source_that_dies_while_it_gives_its_state_is_replaced_by_another(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    with elastic_run(undisturbed.spec, tmp_path / "run", first=2, faults=[Fault(TORCH, "isend", 1)]) as fleet:
        fleet.wait_for_step(10)
        fleet.kill("worker-00000")  # from here on the other one is the source
        fleet.wait_for_size(1)
        fleet.start(2)
        undisturbed.check(fleet)
    assert "restart" in causes(fleet) or fleet.events[-1].after == 2


def test_a_stopped_worker_is_given_up_and_does_no_harm_when_it_wakes(undisturbed: Undisturbed, tmp_path: Path) -> None:
    with elastic_run(undisturbed.spec, tmp_path / "run", first=3, lease=1.0, beat_timeout=1.5) as fleet:
        fleet.wait_for_step(10)
        fleet.kill("worker-00001", signal.SIGSTOP)
        fleet.wait_for_size(2)
        fleet.kill("worker-00001", signal.SIGCONT)
        undisturbed.check(fleet)
    assert fleet.changes[1].cause == "lost" and fleet.changes[1].members == ("worker-00001",)


def test_a_driver_that_is_held_up_for_longer_than_a_lease_costs_no_step_and_no_worker(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    with elastic_run(
        undisturbed.spec, tmp_path / "run", first=2, each=[Slow(0.005)], lease=1.0, beat_timeout=1.5
    ) as fleet:
        fleet.wait_for_step(10)
        fleet.server.ask(lambda authority, now: time.sleep(1.3))
        undisturbed.check(fleet)
    start, *others = [(event.cause, event.members, event.after, event.lost) for event in fleet.events]
    assert start[0] == "start" and set(others) == {("broken", (), 2, 0)}


def test_when_all_die_the_run_goes_on_from_the_last_checkpoint(undisturbed: Undisturbed, tmp_path: Path) -> None:
    with elastic_run(undisturbed.spec, tmp_path / "run", first=2) as fleet:
        fleet.wait_for_step(40)
        for name in fleet.living():
            fleet.kill(name)
        fleet.start(2)
        fleet.wait(lambda: "restart" in causes(fleet), "the restart")
        facts = fleet.finish()
        assert facts["state_sha256"] == undisturbed.facts["state_sha256"]
    (restart,) = (event for event in fleet.events if event.cause == "restart")
    assert restart.step % 15 == 0 and 0 < restart.lost <= 15 + 1


def test_when_all_die_and_no_checkpoint_is_whole_the_run_refuses_to_begin_anew(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    with elastic_run(undisturbed.spec, tmp_path / "run", first=2) as fleet:
        fleet.wait_for_step(20)
        for name in fleet.living():
            fleet.kill(name)
        fleet.wait(lambda: not fleet.living(), "the end of all")
        for path in fleet.job.folder.glob("checkpoints/step-*/state.safetensors"):
            path.write_bytes(path.read_bytes()[:-1])
        fleet.start(2)
        fleet.wait(lambda: fleet.server.over, "the refusal", failing=True)
        assert fleet.server.failure is not None and fleet.server.failure["kind"] == "CheckpointError"
        assert "has no whole checkpoint" in fleet.server.failure["message"]
    assert list(fleet.job.folder.glob("checkpoints/step-*")), "nothing is set aside: the next start refuses too"


def test_a_new_authority_goes_on_where_the_last_one_stopped(undisturbed: Undisturbed, tmp_path: Path) -> None:
    with elastic_run(undisturbed.spec, tmp_path / "run", first=2) as fleet:
        fleet.wait_for_step(40)
        for name in fleet.living():
            fleet.kill(name)
    first = fleet.server.view
    RunRecord(tmp_path / "run").forget_after(max(Checkpoints(tmp_path / "run" / "checkpoints", 2).steps()))
    with elastic_run(undisturbed.spec, tmp_path / "run", first=1) as fleet:
        undisturbed.check(fleet)
    assert first is not None and fleet.events[0].epoch > first.epoch and fleet.events[0].cause == "resume"


def test_a_worker_that_joins_a_resumed_run_does_not_need_the_checkpoint_that_it_began_with(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    gone = 7  # a step whose checkpoint has been dropped since
    with elastic_run(undisturbed.spec, tmp_path / "run", first=1, resume=gone) as fleet:
        fleet.wait_for_step(10)
        fleet.start(1)
        fleet.wait_for_size(2)
        undisturbed.check(fleet)


@dataclass(frozen=True)
class Slow:
    """A machine that takes longer for every slice."""

    seconds: float

    def arm(self) -> None:
        real = DataParallel._first_pass

        def slowly(strategy: DataParallel, slot: int) -> None:
            time.sleep(self.seconds)
            real(strategy, slot)

        DataParallel._first_pass = slowly  # type: ignore[method-assign]


def test_slices_are_dealt_by_measured_speed_and_the_bits_are_the_same(undisturbed: Undisturbed, tmp_path: Path) -> None:
    slow = Slow(0.03)
    with elastic_run(undisturbed.spec, tmp_path / "run", first=2, faults=[slow], balance="measured") as fleet:
        fleet.wait_for_step(10)
        assert fleet.server.view is not None and fleet.server.view.deal == (4, 4), "nothing is known yet"
        fleet.start(1)
        fleet.wait_for_size(3)
        view = fleet.server.view
        assert view.deal[view.rank("worker-00001")] == 1 == min(view.deal) and max(view.deal) > 3
        undisturbed.check(fleet)


def test_a_worker_that_has_become_slow_is_named_and_given_fewer_slices_in_mid_run(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    slow, hold = Slow(0.03), 0.3
    with elastic_run(
        undisturbed.spec, tmp_path / "run", first=2, faults=[slow], balance="measured", hold=hold
    ) as fleet:
        fleet.wait(lambda: "balance" in causes(fleet), "another deal")
        view = fleet.server.view
        assert view is not None and view.deal[view.rank("worker-00001")] < 4
        undisturbed.check(fleet)
    (straggler,) = (event for event in fleet.events if event.cause == "straggler")
    assert straggler.members == ("worker-00001",) and "slices a second, the others" in straggler.note
    assert all(event.lost == 0 for event in fleet.events)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hundred_steps_on_glyphs_resized_and_killed_three_times(tmp_path: Path) -> None:
    train = {"steps": 200, "evaluate_every": 100, "checkpoint_every": 20}
    loss = {"kind": "multi_similarity", "miner": {"kind": "multi_similarity"}}
    model = {"backbone": {"kind": "small_cnn", "width": 16, "dropout": 0.1}, "dimension": 32}
    spec = small_spec(tmp_path, data={"kind": "glyphs"}, train=train, loss=loss, model=model)
    with elastic_run(spec, tmp_path / "undisturbed", first=2) as fleet:
        wanted, losses = fleet.finish(300), losses_of(fleet)
    with elastic_run(spec, tmp_path / "disturbed", first=1) as fleet:
        fleet.wait_for_step(10)
        fleet.start(2)
        fleet.wait_for_size(3)
        fleet.server.ask(lambda authority, now: authority.resize(2, now))
        fleet.wait_for_size(2)
        fleet.server.ask(lambda authority, now: authority.resize(4, now))
        for _ in range(3):
            fleet.wait_for_step(fleet.step() + random.SystemRandom().randrange(5, 25))
            assert fleet.server.view is not None
            fleet.kill(random.SystemRandom().choice(fleet.server.view.members))
            fleet.start(1)
            fleet.wait_for_size(2)
        found = fleet.finish(300)
        assert losses_of(fleet) == losses
    assert {name: found[name] for name in ("state_sha256", "sha256")} == {
        name: wanted[name] for name in ("state_sha256", "sha256")
    }
