"""A state of which each worker holds parts: saved by the owners, loaded by whoever owns them then, the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from raydml.errors import CheckpointError
from raydml.losses import Objective
from raydml.parallel import Group
from raydml.spec import JobSpec
from raydml.training.checkpoints import Best, Checkpoints
from raydml.training.record import RunRecord, read_lines
from raydml.training.saving import Saver
from raydml.training.state import TrainingState
from tests.distributed.elastic_harness import Fault, Fleet, elastic_run
from tests.distributed.harness import run_processes, small_spec, write_images
from tests.distributed.parts import CutRows, HeldCenters, HoldCenters, cut_layer

pytestmark = pytest.mark.timeout(600)

STEPS = 60
EVERY = 12


def spec_of(folder: Path) -> JobSpec:
    return small_spec(
        folder / "images.npz", train={"steps": STEPS, "evaluate_every": 0, "checkpoint_every": EVERY, "keep_last": 3}
    )


def state_of(group: Group) -> TrainingState:
    """Sharded centres, and a model whose rows are cut; both differ from those of step 0."""
    spec = spec_of(Path())
    objective = Objective(spec.loss, num_classes=12, dimension=8, seed=0, dtype=torch.float32)
    held = {"objective.centers": HeldCenters(12, 8, 8)}
    return TrainingState(cut_layer(group), objective, spec, group=group, sharded=held, spread=CutRows(group))


def train(state: TrainingState, group: Group, held: HeldCenters) -> None:
    """Three steps of Adam by a gradient that a row's number decides, and of the centres by rows of two classes."""
    for step in range(3):
        rows = torch.arange(2 * group.owned.start, 2 * group.owned.stop).float()
        state.update([torch.outer(rows + step, torch.ones(4))], torch.tensor(1.0))
        held.move(torch.randn(6, 8, generator=torch.Generator().manual_seed(step)), torch.tensor([0, 0, 5] * 2), group)


def save_in(group: Group, folder: str) -> str:
    state = state_of(group)
    train(state, group, state._sharded["objective.centers"])  # type: ignore[arg-type]
    run = Path(folder)
    assert Saver(Checkpoints(run / "checkpoints", 2), RunRecord(run), group).save(state, Best(3, 0.5), required=True)
    return state.digest()


def load_in(group: Group, folder: str) -> tuple[str, str, list[int]]:
    """The digests before and after, and the shards that this worker holds."""
    state = state_of(group)
    before = state.digest()
    Checkpoints(Path(folder) / "checkpoints", 2).load(3, state)
    return before, state.digest(), sorted(state._sharded["objective.centers"].shards)  # type: ignore[attr-defined]


def test_three_workers_save_what_any_number_loads_each_its_own_parts_only(tmp_path: Path) -> None:
    digests = set()
    for size in (1, 3):
        run = tmp_path / f"by-{size}"
        run.mkdir()
        digests |= set(run_processes(size, save_in, str(run), tmp_path))
        checkpoints = Checkpoints(run / "checkpoints", 2)
        assert digests == {checkpoints.check(3).state_sha256}
        names = [f"objective.centers-{index:05d}" for index in range(8)]
        assert sorted(checkpoints.header(3).parts) == names
    files = [
        sorted((path.name, path.read_bytes()) for path in tmp_path.glob(f"by-{n}/checkpoints/step-*/*")) for n in (1, 3)
    ]
    assert files[0] == files[1] and len(files[0]) == 10, "a checkpoint tells nothing of who wrote it"
    for size in (1, 2, 3):
        results = run_processes(size, load_in, str(tmp_path / "by-3"), tmp_path)
        assert {after for _, after, _ in results} == digests and {before for before, _, _ in results} != digests
        assert [shard for _, _, shards in results for shard in shards] == list(range(8)), (
            "each holds its own and no others"
        )


def test_every_number_of_a_part_is_in_the_digest() -> None:
    state = state_of(Group(0, 1, 8))
    before = state.digest()
    for index in range(8):
        for value in state._sharded["objective.centers"].shard(index).values():
            kept = value.clone()
            value[1, 2] += 1
            assert state.digest() != before
            value.copy_(kept)
    assert state.digest() == before


def test_a_damaged_part_is_a_damaged_checkpoint_but_is_read_by_its_owner_only(tmp_path: Path) -> None:
    save_in(Group(0, 1, 8), str(tmp_path))
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2)
    part = checkpoints.path(3) / "objective.centers-00006.safetensors"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"centers-00006.safetensors is damaged"):
        checkpoints.check(3)
    assert checkpoints.newest_whole()[0] is None
    for rank in (0, 1):
        state = state_of(Group(rank, 2, 8))
        if rank == 1:
            with pytest.raises(CheckpointError, match="damaged"):
                checkpoints.load(3, state)
        else:
            checkpoints.load(3, state)
    part.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoints.check(3)


def test_a_checkpoint_without_a_part_or_with_another_shape_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    save_in(Group(0, 1, 8), str(tmp_path))
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2)
    state = state_of(Group(0, 1, 8))
    state._sharded["objective.centers"] = HeldCenters(24, 8, 8)
    before = state.digest()
    with pytest.raises(CheckpointError, match=r"part objective.centers-00000 holds .*\(2, 8\).*\(3, 8\)"):
        checkpoints.load(3, state)
    header = checkpoints.path(3) / "checkpoint.json"
    fields = json.loads(header.read_text())
    del fields["parts"]["objective.centers-00007"]
    header.write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=r"part objective.centers-00007 holds \{\}"):
        checkpoints.load(3, state_of(Group(0, 1, 8)))
    assert state.digest() == before and state.step == 0


def save_where_one_may_not(group: Group, folder: str) -> bool:
    """The second worker finds a folder in the place of a file of its own."""
    state = state_of(group)
    train(state, group, state._sharded["objective.centers"])  # type: ignore[arg-type]
    run = Path(folder)
    if group.rank == 1:
        import raydml.training.checkpoints as module

        real = module.write_bytes

        def refusing(path: Path, data: bytes) -> None:
            path.mkdir()
            real(path, data)

        module.write_bytes = refusing
    return Saver(Checkpoints(run / "checkpoints", 2, failed_saves=1), RunRecord(run), group).save(
        state, None, required=False
    )


def test_a_part_that_its_owner_cannot_write_fails_the_save_on_all_and_leaves_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert run_processes(2, save_where_one_may_not, str(run), tmp_path) == [False, False]
    assert list((run / "checkpoints").iterdir()) == []
    assert "objective.centers-00004" in read_lines(run / "metrics.jsonl")[0][0]["failed_save"]


# A run whose members come and go.


class Undisturbed:
    """What a run of two members ends with that nothing happens to."""

    def __init__(self, folder: Path) -> None:
        write_images(folder)
        self.spec = spec_of(folder)
        with run_of(self.spec, folder / "undisturbed", first=2) as fleet:
            self.facts = fleet.finish()
            self.losses = losses_of(fleet)

    def check(self, fleet: Fleet) -> None:
        """The same bits, and every step once."""
        facts = fleet.finish()
        assert losses_of(fleet) == self.losses
        assert {name: facts[name] for name in ("state_sha256", "sha256")} == {
            name: self.facts[name] for name in ("state_sha256", "sha256")
        }


def run_of(spec: JobSpec, folder: Path, first: int, **options: Any) -> Any:
    return elastic_run(spec, folder, first, each=[HoldCenters()], state="sharded", **options)


def losses_of(fleet: Fleet) -> list[tuple[int, float]]:
    lines, _ = read_lines(RunRecord(fleet.job.folder).metrics_path)
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("sharded"))


def test_planned_changes_lose_no_step_and_no_process(undisturbed: Undisturbed, tmp_path: Path) -> None:
    with run_of(undisturbed.spec, tmp_path / "run", first=1) as fleet:
        fleet.wait_for_step(5)
        fleet.start(2)
        fleet.wait_for_size(3)
        fleet.wait_for_step(fleet.step() + 3)
        fleet.server.ask(lambda authority, now: authority.resize(2, now))
        fleet.wait_for_size(2)
        assert fleet.server.view is not None and "worker-00000" in fleet.server.view.members
        undisturbed.check(fleet)
    assert {event.cause for event in fleet.changes} == {"start", "join", "resize"}
    assert all(event.lost == 0 for event in fleet.events)
    changed = [event.step for event in fleet.events if event.cause != "start"]
    assert any(step % EVERY for step in changed), "a checkpoint was made for the change"


@pytest.mark.parametrize("checkpoints", [0, 1], ids=["from the start", "from a checkpoint"])
def test_after_a_death_the_survivors_go_on_from_the_last_checkpoint_in_their_processes(
    undisturbed: Undisturbed, tmp_path: Path, checkpoints: int
) -> None:
    with run_of(undisturbed.spec, tmp_path / "run", first=3) as fleet:
        fleet.wait_for_step(checkpoints * EVERY + 2)
        fleet.kill("worker-00000")  # the one that writes
        fleet.wait_for_size(2)
        assert fleet.server.view is not None and fleet.server.view.members == ("worker-00001", "worker-00002")
        undisturbed.check(fleet)
    (restart,) = (event for event in fleet.events if event.cause == "restart")
    assert restart.step % EVERY == 0 and restart.step >= checkpoints * EVERY
    assert 0 < restart.lost <= EVERY + 1 and restart.after == 2
    assert {"lost", "death"} & {event.cause for event in fleet.events}


def test_an_owner_that_dies_while_parts_are_written_costs_the_steps_since_the_checkpoint_before(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    deadly = Fault("raydml.training.checkpoints", "write_bytes", 10)  # 2 or 3 parts at each checkpoint: a later one
    with run_of(undisturbed.spec, tmp_path / "run", first=3, faults=[deadly]) as fleet:
        undisturbed.check(fleet)
    (restart,) = (event for event in fleet.events if event.cause == "restart")
    assert restart.step % EVERY == 0 and restart.lost == EVERY
    assert not list((fleet.job.folder / "checkpoints").glob(".tmp-*"))
