"""Files and folders appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from raydml import files
from raydml.errors import ResourceError

pytestmark = pytest.mark.timeout(20)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_with(code: int) -> object:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_written_bytes_replace_the_old_ones_and_make_their_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    files.write_bytes(path, b"old")
    files.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["file"]
    assert files.sha256_file(path) == hashlib.sha256(b"new").hexdigest()


def test_files_get_the_permissions_of_the_umask(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "file", b"")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_is_read_back_and_a_nan_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    files.write_json(path, {"ä": [1, 2.5, None]})
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(path, float("nan"))
    assert json.loads(path.read_text()) == {"ä": [1, 2.5, None]}


def test_a_full_disk_leaves_the_old_file_and_says_where_and_how_much_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    files.write_bytes(path, b"old")
    monkeypatch.setattr(os, "fsync", fail_with(28))
    with pytest.raises(ResourceError, match=r"No space left.*MiB are free") as caught:
        files.write_bytes(path, b"new")
    assert caught.value.data["path"] == str(path)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_lines_are_appended_until_the_disk_is_full(tmp_path: Path) -> None:
    for line in ("one", "two"):
        files.append_line(tmp_path / "lines", line)
    assert (tmp_path / "lines").read_text() == "one\ntwo\n"
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(ResourceError, match="No space left"):
        files.append_line(tmp_path / "full", "three")


def test_a_line_after_one_cut_short_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("one\ncut sho")
    files.append_line(tmp_path / "lines", "two", durable=True)
    assert (tmp_path / "lines").read_text() == "one\ncut sho\ntwo\n"


def test_a_line_for_which_there_is_no_room_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    files.append_line(path, "one")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))  # room for half of the line
    try:
        with pytest.raises(ResourceError, match="File too large"):
            files.append_line(path, "a longer line")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "one\n"


def test_a_folder_is_removed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("")
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed before it began
    files.remove_folder(tmp_path / "folder")
    (left,) = names(tmp_path)
    assert left.startswith(".tmp-")
    monkeypatch.undo()
    assert [path.name for path in files.sweep(tmp_path)] == [left] and not names(tmp_path)


def test_a_parent_that_is_a_file_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError, match="cannot write"):
        files.write_bytes(tmp_path / "file" / "below", b"")


def test_a_folder_appears_when_its_block_ends(tmp_path: Path) -> None:
    with files.whole_folder(tmp_path / "folder") as folder:
        (folder / "below").mkdir()
        (folder / "below" / "one").write_text("1")
        assert not (tmp_path / "folder").exists()
    assert (tmp_path / "folder" / "below" / "one").read_text() == "1"
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_replaces_an_old_one_entirely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    for name in ("old", "new"):
        with files.whole_folder(tmp_path / "folder") as folder:
            (folder / name).write_text(name)
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["new"]


def test_a_block_that_raises_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    with files.whole_folder(tmp_path / "folder") as folder:
        (folder / "old").write_text("old")
    with pytest.raises(FileNotFoundError), files.whole_folder(tmp_path / "folder") as folder:
        (folder / "new").write_text("new")
        (folder / "absent").read_text()
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["old"]


def test_a_full_disk_in_a_block_is_a_resource_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="No space left"), files.whole_folder(tmp_path / "folder"):
        raise OSError(28, os.strerror(28))
    assert names(tmp_path) == []


def test_every_file_of_a_folder_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with files.whole_folder(tmp_path / "folder") as folder:
        (folder / "one").write_text("1")
        (folder / "below").mkdir()
        (folder / "below" / "two").write_text("2")
    assert {"one", "two", "below", tmp_path.name} <= set(synced)
    assert synced[-1] == tmp_path.name


def test_sweep_removes_the_leftovers_of_the_killed_and_spares_the_living(tmp_path: Path) -> None:
    code = f"""
import time
from raydml import files
with files.whole_folder({str(tmp_path / "dead")!r}) as folder:
    (folder / "part").write_text("part")
    print("ready", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert files.sweep(tmp_path) == []
        child.send_signal(signal.SIGKILL)
    with files.whole_folder(tmp_path / "alive") as folder:
        deadline = time.monotonic() + 10
        while not (removed := files.sweep(tmp_path)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(removed) == 1
        assert folder.is_dir()
    assert names(tmp_path) == ["alive"]


def test_a_scratch_folder_goes_at_the_end_and_those_of_the_killed_go_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "scratch-killed").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "scratch-link").symlink_to(tmp_path / "other")
    with files.scratch_folder("scratch-") as one:
        with files.scratch_folder("scratch-") as two:
            assert one.is_dir() and two.is_dir() and one != two
        assert names(tmp_path) == sorted(["other", "scratch-link", one.name])
    assert names(tmp_path) == ["other", "scratch-link"]


def test_files_loads_no_torch() -> None:
    code = "import sys, raydml.files; assert not {'torch', 'ray', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
