"""Damaged checkpoints, full disks and killed writers: the newest whole checkpoint is used, and the damage is named."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raydml.errors import CheckpointError, ResourceError
from raydml.parallel import Group
from raydml.training.checkpoints import Best, Checkpoints
from raydml.training.record import RunRecord, read_lines
from raydml.training.saving import Saver
from tests.unit.test_training_state import gradients, saved, spec_of, state_of, trained

TENSORS, HEADER = "state.safetensors", "checkpoint.json"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def of_another_step(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("step-00000001"), folder)


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def replaced_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "torn tensors": (lambda folder: os.truncate(folder / TENSORS, 100), "is damaged: its SHA-256"),
    "empty tensors": (lambda folder: os.truncate(folder / TENSORS, 0), "is damaged: its SHA-256"),
    "flipped bit": (lambda folder: flip(folder / TENSORS), "is damaged: its SHA-256"),
    "torn header": (lambda folder: os.truncate(folder / HEADER, 40), "is not a readable checkpoint"),
    "no tensors": (lambda folder: (folder / TENSORS).unlink(), "cannot be read: No such file"),
    "no header": (lambda folder: (folder / HEADER).unlink(), "is not a readable checkpoint"),
    "tensors that are a folder": (lambda folder: replaced_by_a_folder(folder / TENSORS), "cannot be read: Is a dir"),
    "nothing": (emptied, "is not a readable checkpoint"),
    "another step": (of_another_step, "says that it is of step 1"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_newest_whole_checkpoint_is_found_and_the_damage_of_newer_ones_is_named(
    tmp_path: Path, damage: str
) -> None:
    checkpoints = saved(tmp_path, 3)
    assert checkpoints.newest_whole() == (3, [])
    spoil, words = DAMAGE[damage]
    spoil(checkpoints.path(3))
    step, (problem,) = checkpoints.newest_whole()
    assert step == 2
    assert str(checkpoints.path(3)) in problem and words in problem
    with pytest.raises(CheckpointError):
        checkpoints.load(3, state_of(spec_of()))
    spoil(checkpoints.path(2))
    assert checkpoints.newest_whole()[0] == 1


def test_without_a_whole_checkpoint_there_is_none_and_every_problem_is_named(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "nowhere", 2).newest_whole() == (None, [])
    checkpoints = saved(tmp_path, 2)
    for step in (1, 2):
        flip(checkpoints.path(step) / TENSORS)
    step, problems = checkpoints.newest_whole()
    assert step is None
    assert [f"step-0000000{number}" in problem for number, problem in zip((2, 1), problems, strict=True)] == [True] * 2


@contextmanager
def powerless() -> Iterator[Path]:
    """A folder that this process may write without being root, which no permission would keep out."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(user)
        for path in folder.rglob("*"):
            path.chmod(0o700)
        shutil.rmtree(folder)


def test_a_checkpoint_that_may_not_be_read_is_passed_over() -> None:
    with powerless() as folder:
        checkpoints = saved(folder / "checkpoints", 2)
        (checkpoints.path(2) / TENSORS).chmod(0)
        step, (problem,) = checkpoints.newest_whole()
        assert (step, "cannot be read: Permission denied" in problem) == (1, True)


def test_a_folder_that_nobody_may_list_is_not_taken_for_an_empty_one() -> None:
    with powerless() as folder:
        checkpoints = saved(folder / "checkpoints", 2)
        checkpoints.folder.chmod(0)
        with pytest.raises(CheckpointError, match="checkpoints cannot be read: Permission denied"):
            checkpoints.newest_whole()


def test_an_old_checkpoint_that_cannot_be_removed_does_not_fail_the_save() -> None:
    with powerless() as folder:
        checkpoints = Checkpoints(folder / "checkpoints", 1)
        state = trained(spec_of(), 1)
        checkpoints.save(state, None)
        state.update(gradients(state))
        checkpoints.path(1).chmod(0)  # its files cannot be removed; its name can
        checkpoints.save(state, None)
        assert checkpoints.newest_whole() == (2, [])
        assert checkpoints.steps() == [2]


def test_damaged_checkpoints_are_set_aside_and_count_for_nothing(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 3)
    for _ in range(2):  # the second time over the first one's
        flip(checkpoints.path(3) / TENSORS)
        before = (checkpoints.path(3) / TENSORS).read_bytes()
        checkpoints.set_aside_after(2)
        assert checkpoints.steps() == [1, 2]
        assert (tmp_path / "damaged-00000003" / TENSORS).read_bytes() == before
        shutil.copytree(checkpoints.path(1), checkpoints.path(3))
    checkpoints.set_aside_after(2)
    state = state_of(spec_of())
    one_kept = Checkpoints(tmp_path, 1)
    one_kept.load(2, state)
    state.update(gradients(state))
    one_kept.save(state, None)
    assert one_kept.steps() == [3] and one_kept.newest_whole() == (3, [])


def test_a_damaged_later_checkpoint_never_costs_the_one_just_saved(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 3)
    flip(checkpoints.path(3) / TENSORS)
    state = state_of(spec_of())
    one_kept = Checkpoints(tmp_path, 1)
    one_kept.load(1, state)
    state.update(gradients(state))
    one_kept.save(state, None)
    assert one_kept.newest_whole()[0] == 2


# Full and unreachable storage


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here, so no disk can be full: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    path = folder / "filling"
    with pytest.raises(OSError, match="No space left"), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return path


def test_training_outlives_a_full_disk_and_the_next_checkpoint_makes_up_for_it(tiny_disk: Path) -> None:
    checkpoints, state = Checkpoints(tiny_disk / "checkpoints", 2, failed_saves=2), state_of(spec_of())
    record = RunRecord(tiny_disk)
    saver = Saver(checkpoints, record, Group(0, 1, 8))
    states: dict[int, str] = {}
    for step in range(1, 7):
        state.update(gradients(state, step))
        states[step] = state.digest()
        filling = fill(tiny_disk) if step in (2, 5) else tiny_disk / "filling"
        if step in (4, 6):
            filling.unlink()
        record.log(step=step, loss=0.5)
        saved = saver.save(state, Best(step, step / 10), required=False)
        whole = 1 if step < 4 else max(4, step if step != 5 else 4)
        assert saved == (whole == step)
        assert checkpoints.newest_whole() == (whole, [])
        assert checkpoints.header(whole).state_sha256 == states[whole]
    lines = read_lines(record.metrics_path)[0]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6], "no line was lost"
    failed = [line["failed_save"] for line in lines if "failed_save" in line]
    assert [words.split(":")[0] for words in failed] == [f"the checkpoint of step {n} is not saved" for n in (2, 3, 5)]
    assert all("No space left on device; 0 MiB are free" in words for words in failed)
    assert not list(checkpoints.folder.glob(".tmp-*"))


def test_a_disk_that_stays_full_stops_training_with_the_numbers(tiny_disk: Path) -> None:
    checkpoints, state = Checkpoints(tiny_disk / "checkpoints", 1, failed_saves=2), trained(spec_of(), 1)
    checkpoints.save(state, None)
    fill(tiny_disk)
    for step in range(2):
        state.update(gradients(state, step))
        words = checkpoints.try_save(state, None, required=False)
        assert words is not None and "Training goes on" in words
    with pytest.raises(ResourceError, match=r"No space left.*\(3 failed in a row, .*failed_saves is 2\).*are kept"):
        checkpoints.try_save(state, None, required=False)
    assert checkpoints.newest_whole() == (1, [])


def test_the_checkpoint_that_training_ends_with_must_be_saved(tiny_disk: Path) -> None:
    checkpoints, state = Checkpoints(tiny_disk / "checkpoints", 1, failed_saves=99), trained(spec_of(), 1)
    fill(tiny_disk)
    with pytest.raises(ResourceError, match=r"1 failed in a row.* training ends here"):
        checkpoints.try_save(state, None, required=True)


def test_storage_that_refuses_is_outlived_too(tiny_disk: Path) -> None:
    checkpoints, state = Checkpoints(tiny_disk / "checkpoints", 2, failed_saves=1), trained(spec_of(), 1)
    checkpoints.save(state, None)
    state.update(gradients(state))
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    assert "Read-only file system" in (checkpoints.try_save(state, None, required=False) or "")
    subprocess.run(["mount", "-o", "remount,rw", str(tiny_disk)], check=True)
    assert checkpoints.try_save(state, None, required=False) is None
    moved = checkpoints.folder.rename(tiny_disk / "moved")
    checkpoints.folder.write_text("a file where the folder was")
    state.update(gradients(state))
    assert "the checkpoint of step 3 is not saved: cannot write" in (
        checkpoints.try_save(state, None, required=False) or ""
    )
    checkpoints.folder.unlink()
    moved.rename(checkpoints.folder)
    assert checkpoints.newest_whole() == (2, [])
    assert checkpoints.try_save(state, None, required=False) is None


# Killed writers


def save_for_ever(folder: Path, acknowledged: Path) -> None:
    """Save one step after another, and note each that was saved."""
    state, checkpoints = state_of(spec_of()), Checkpoints(folder, 2)
    with acknowledged.open("w", buffering=1) as file:
        while True:
            state.update(gradients(state, state.step))
            checkpoints.save(state, None)
            file.write(f"{state.step}\n")


def test_a_kill_at_any_moment_of_a_save_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    folder, acknowledged = tmp_path / "checkpoints", tmp_path / "acknowledged"
    left_behind = 0
    for saves in (1, 3, 7, 12):
        shutil.rmtree(folder, ignore_errors=True)
        acknowledged.unlink(missing_ok=True)
        process = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(folder, acknowledged))
        process.start()
        assert process.pid is not None
        while not acknowledged.exists() or acknowledged.read_text().count("\n") < saves:
            assert process.is_alive()
            time.sleep(0.001)
        while not list(folder.glob(".tmp-*")):  # a save has begun
            assert process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        last = int(acknowledged.read_text().split("\n")[-2])
        checkpoints = Checkpoints(folder, 2)
        left_behind += len(list(folder.glob(".tmp-*")))
        step, skipped = checkpoints.newest_whole()
        assert step in (last, last + 1) and not skipped, "one may be whole that nobody was told of"
        state = state_of(spec_of())
        checkpoints.load(step, state)
        assert state.digest() == trained_alike(step)
        state.update(gradients(state, step))
        checkpoints.save(state, None)
        assert not list(folder.glob(".tmp-*")), "the next save swept the orphan"
    assert left_behind, "every kill came between two saves and proved nothing"


def trained_alike(steps: int) -> str:
    state = state_of(spec_of())
    for step in range(steps):
        state.update(gradients(state, step))
    return state.digest()


def test_a_header_says_nothing_of_failed_saves(tmp_path: Path) -> None:
    header = json.loads((saved(tmp_path).path(1) / HEADER).read_text())
    other = spec_of(parallel={"tolerate": {"failed_saves": 9}, "balance": "measured", "patience": 60})
    assert header["spec_digest"] == other.digest()
