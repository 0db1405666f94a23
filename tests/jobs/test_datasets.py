"""Data sets of a server: parts in any order and again, what is found in them, and what is refused."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raydml.errors import DataError, QuotaExceeded, RecordConflict, RecordNotFound
from raydml.jobs.database import Database
from raydml.jobs.dataset_check import Question, _looked_at, found
from raydml.jobs.datasets import Datasets, Limits, path_of
from raydml.jobs.ids import DEFAULT_PROJECT
from raydml.jobs.store import JobStore
from tests.jobs.conftest import a_spec

BOUNDS = {"files": 1000, "unpacked_bytes": 1 << 20}


def picture(shade: int, size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("L", size, shade).save(file, "PNG")
    return file.getvalue()


def pictures(files: dict[str, bytes] | None = None) -> bytes:
    """A zip of six pictures of three classes in one folder, and more files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(6):
            archive.writestr(f"mine/{'abc'[number % 3]}/{number}.png", picture(40 * number))
        for name, content in (files or {}).items():
            archive.writestr(name, content)
    return file.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def look(tmp_path: Path, content: bytes, kind: str = "archive", **changes: Any) -> dict[str, Any]:
    """What the checking process would find, in this one."""
    upload, folder = tmp_path / "upload", tmp_path / "folder"
    upload.write_bytes(content)
    values = {
        "path": str(upload),
        "kind": kind,
        "folder": str(folder),
        "sha256": sha256(content),
        "home": str(tmp_path),
    }
    values |= {"bounds": BOUNDS, "pixels": 10_000, "memory": 8 << 30}
    return _looked_at(Question(**{**values, **changes}))  # type: ignore[arg-type]


@pytest.fixture
def datasets(database: Database, home: Path) -> Datasets:
    return Datasets(database, home, Limits(part_bytes=1000, project_bytes=10_000, datasets=3))


def begun(datasets: Datasets, content: bytes, project: str = DEFAULT_PROJECT) -> str:
    return datasets.upload(project, "mine", "archive", len(content), sha256(content), "local").id


def send(datasets: Datasets, identity: str, content: bytes, *numbers: int) -> None:
    for number in numbers:
        part = content[1000 * number : 1000 * (number + 1)]
        datasets.put_part(identity, DEFAULT_PROJECT, number, part, sha256(part))


def test_parts_come_in_any_order_and_again_and_after_a_restart_those_that_are_there_are_known(
    database: Database, home: Path, datasets: Datasets
) -> None:
    content = pictures({"mine/note.txt": np.random.default_rng(0).bytes(2500)})
    identity, last = begun(datasets, content), len(content) // 1000
    send(datasets, identity, content, last, 1, 1)
    again = Datasets(database, home, datasets.limits)
    assert list(again.parts(identity, DEFAULT_PROJECT)) == [1, last]
    with pytest.raises(RecordConflict, match=rf"{last - 1} of {last + 1} parts are missing: 0"):
        again.complete(identity, DEFAULT_PROJECT)
    send(again, identity, content, *range(last))
    assert again.complete(identity, DEFAULT_PROJECT).state == "checking"
    assert (home / "uploads" / identity).read_bytes() == content
    with pytest.raises(RecordConflict, match="is checking: its parts cannot change"):
        send(again, identity, content, 0)


def test_a_part_that_is_not_what_was_announced_is_refused_and_one_that_is_replaced_counts_anew(
    datasets: Datasets, home: Path
) -> None:
    content = bytes(2500)
    identity = begun(datasets, content)
    for number, part, digest, problem in (
        (3, b"", sha256(b""), "there is no part 3: 3 parts of 1000 bytes"),
        (-1, b"", sha256(b""), "there is no part -1"),
        (2, bytes(1000), sha256(bytes(1000)), "part 2 has 500 bytes, and 1000 were sent"),
        (0, bytes(1000), sha256(b"x"), "its SHA-256 is not"),
    ):
        with pytest.raises(DataError, match=problem):
            datasets.put_part(identity, DEFAULT_PROJECT, number, part, digest)
    assert datasets.parts(identity, DEFAULT_PROJECT) == {}
    send(datasets, identity, content, 0)
    other = b"x" * 1000
    datasets.put_part(identity, DEFAULT_PROJECT, 0, other, sha256(other))
    assert datasets.parts(identity, DEFAULT_PROJECT) == {0: sha256(other)}
    assert (home / "uploads" / identity).read_bytes() == other


def test_quotas_count_the_bytes_and_the_data_sets_of_a_project(datasets: Datasets) -> None:
    begun(datasets, bytes(9000))
    with pytest.raises(QuotaExceeded, match="have 9000 bytes of 10000, and this one has 1001"):
        begun(datasets, bytes(1001))
    identity = begun(datasets, bytes(1000))
    datasets.delete(identity, DEFAULT_PROJECT)
    begun(datasets, bytes(1))
    begun(datasets, bytes(1))
    with pytest.raises(QuotaExceeded, match="has 3 data sets of 3"):
        begun(datasets, bytes(1))


def test_an_uploaded_archive_is_checked_in_a_process_of_its_own_used_and_deleted(
    database: Database, home: Path, datasets: Datasets
) -> None:
    content = pictures({"mine/a/broken.png": b"no picture"})
    identity = begun(datasets, content)
    send(datasets, identity, content, *range(len(content) // 1000 + 1))
    with database.reading() as session, pytest.raises(RecordConflict, match="is uploading: wait until it is ready"):
        path_of(session, identity, DEFAULT_PROJECT)
    datasets.complete(identity, DEFAULT_PROJECT)
    datasets.stopped.set()
    assert datasets.check(identity).state == "checking" and datasets.unchecked() == [identity]
    datasets.stopped.clear()
    row = datasets.check(identity)
    assert (row.state, row.problem) == ("ready", None)
    assert row.report is not None
    assert (row.report["items"], row.report["classes"], row.report["bad_items"]) == (6, 3, 1)
    assert row.report["problems"][0]["item"] == "a/broken.png"
    with database.reading() as session:
        folder = path_of(session, identity, DEFAULT_PROJECT)
        with pytest.raises(RecordNotFound):
            path_of(session, identity, "prj_other")
    assert folder == home / "datasets" / identity / "mine" and len(list(folder.glob("*/*.png"))) == 7
    assert not (home / "uploads" / identity).exists()
    with pytest.raises(RecordNotFound):
        datasets.delete(identity, "prj_other")
    store = JobStore(database, home)
    job = store.create(a_spec(data={"kind": "image_folder", "path": str(folder)}))
    with pytest.raises(RecordConflict, match=f"is used by {job.id}"):
        datasets.delete(identity, DEFAULT_PROJECT)
    store.ask("cancel", job.id)
    datasets.delete(identity, DEFAULT_PROJECT)
    assert not folder.exists() and datasets.list(DEFAULT_PROJECT, None, 10) == []


def test_tables_and_arrays_are_looked_at_as_what_they_are(tmp_path: Path) -> None:
    csv = "text,label\n" + "".join(f"word {number},{number % 3}\n" for number in range(6))
    report = look(tmp_path, csv.encode(), "csv")
    assert (report["data_kind"], report["path"], report["items"], report["longest_side"]) == (
        "manifest",
        "table.csv",
        6,
        None,
    )
    file = io.BytesIO()
    np.savez_compressed(file, inputs=np.ones((6, 3), np.float32), labels=np.arange(6) // 2)
    report = look(tmp_path, file.getvalue(), "npz")
    assert (report["data_kind"], report["path"], report["smallest_class"]) == ("arrays", "arrays.npz", 2)
    with pytest.raises(DataError, match=r"arrays\.npz unpacks to"):
        look(tmp_path, file.getvalue(), "npz", bounds={**BOUNDS, "unpacked_bytes": 100})


def bomb(side: int) -> bytes:
    """A PNG of a few bytes whose header says that it has side x side pixels."""
    content = bytearray(picture(0))
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"mine/a/bomb.png": bomb(101)}, "a/bomb.png unpacks to more than 10000 pixels"),
        ({"mine/a/bomb.png": bomb(30_000)}, "a/bomb.png unpacks to more than 10000 pixels"),
        ({"../x.png": b""}, "the archive names"),
        ({"mine/zeros": bytes(1 << 20)}, "unpacks to more than 1048576 bytes"),
        ({"mine/t.csv": b"path,label\n../../x.png,a\n../y.png,b\n"}, "outside of the table's folder"),
    ],
)
def test_what_is_wrong_with_an_archive_leaves_nothing(tmp_path: Path, files: dict[str, bytes], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        look(tmp_path, pictures(files))
    assert [path.name for path in tmp_path.iterdir()] == ["upload"]


def test_an_upload_that_is_not_what_was_announced_is_refused_as_a_whole(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="SHA-256 is not the one that was announced"):
        look(tmp_path, pictures(), sha256=sha256(b""))


def test_data_that_takes_too_much_memory_or_time_ends_its_own_process_alone(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("text,label\n" + "".join(f"{'x' * 1000},{number % 3}\n" for number in range(60_000)))
    question = Question(str(table), "path", None, None, str(tmp_path), BOUNDS, 10_000, memory=700 << 20)
    with pytest.raises(DataError, match=r"more than 734003200 bytes of memory|died over it"):
        found(question, 500, threading.Event())
    with pytest.raises(DataError, match=r"took more than 0\.01 s"):
        found(question, 0.01, threading.Event())
