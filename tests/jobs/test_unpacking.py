"""Archives from somebody unknown: what is unpacked, and what is refused with nothing written outside of the folder."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from raydml.errors import DataError
from raydml.jobs.unpacking import Bounds, unpack

BOUNDS = Bounds(files=10, unpacked_bytes=1 << 20, free_bytes=1000)


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, *members: tarfile.TarInfo, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return path


def member(name: str, size: int = 3, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, target
    return info


def written(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "in" / "folder"
    made.mkdir(parents=True)
    return made


def test_files_of_a_zip_and_of_every_tar_are_written_as_they_are(tmp_path: Path, folder: Path) -> None:
    files = {"a/1.png": b"one", "./a/2.png": b"two", "b/": b"", "b/ü.png": b"three"}
    expected = {"a/1.png": b"one", "a/2.png": b"two", "b/ü.png": b"three"}
    assert unpack(zipped(tmp_path / "z", files, zipfile.ZIP_DEFLATED), folder, BOUNDS) == 3
    assert written(folder) == expected
    for compression in ("", "gz", "bz2", "xz"):
        target = tmp_path / f"of{compression}"
        target.mkdir()
        archive = tarred(
            tmp_path / f"t{compression}", member("x", 0, tarfile.DIRTYPE), member("x/y"), mode=f"w:{compression}"
        )
        assert unpack(archive, target, BOUNDS) == 1
        assert written(target) == {"x/y": bytes(3)}


NAMES = ["../x", "/x", "a/../../x", "a\\..\\x", "C:x", "a\nb", "\x1b[31m", "..", "a/" * 40 + "x", "x" * 300, "."]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["zip", "tar"])
def test_a_name_that_is_not_plainly_inside_is_refused(tmp_path: Path, folder: Path, form: str, name: str) -> None:
    path = tmp_path / "archive"
    archive = zipped(path, {name: b"x"}) if form == "zip" else tarred(path, member(name))
    with pytest.raises(DataError, match="the archive names"):
        unpack(archive, folder, BOUNDS)
    assert written(tmp_path) == {"archive": path.read_bytes()}


KINDS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]


@pytest.mark.parametrize("kind", KINDS)
def test_links_and_devices_in_a_tar_are_refused_and_nothing_is_written_through_them(
    tmp_path: Path, folder: Path, kind: bytes
) -> None:
    archive = tarred(tmp_path / "t", member("d", 0, kind, ".."), member("d/x"))
    with pytest.raises(DataError, match="link, a device"):
        unpack(archive, folder, BOUNDS)
    assert not written(folder) and list(folder.parent.iterdir()) == [folder]


def test_a_link_in_a_zip_is_refused(tmp_path: Path, folder: Path) -> None:
    info = zipfile.ZipInfo("d")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        archive.writestr(info, "/etc")
    with pytest.raises(DataError, match="link or a device"):
        unpack(tmp_path / "z", folder, BOUNDS)


def _many(path: Path) -> Path:
    return zipped(path, {str(number): b"" for number in range(11)})


def _ratio(path: Path) -> Path:
    return zipped(path, {"zeros": bytes(1 << 19)}, zipfile.ZIP_DEFLATED)  # some 1000 : 1


def _large(path: Path) -> Path:
    return zipped(path, {"a": bytes(1 << 20), "b": b"x"})


def _lying(path: Path) -> Path:
    """A zip whose directory says that its file is small."""
    content = bytearray(_ratio(path).read_bytes())
    entry = content.index(b"PK\1\2")
    content[entry + 24 : entry + 28] = (10).to_bytes(4, "little")
    path.write_bytes(content)
    return path


def _twice(path: Path) -> Path:
    return tarred(path, member("a"), member("./a"))


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (_many, "more than 10 files"),
        (_ratio, "at most 200 times its size"),
        (_large, "more than 1048576 bytes"),
        (_lying, "unpack"),
        (_twice, "twice"),
        (lambda path: zipped(path, {}), "no files"),
        (lambda path: tarred(path), "no files"),
        (lambda path: path.write_bytes(b"MZ" * 100) and path, "cannot be unpacked"),
        (lambda path: tarred(path, member("s", 3, tarfile.GNUTYPE_SPARSE)), "link, a device or sparse"),
    ],
)
def test_bombs_and_what_is_no_archive_are_refused(
    tmp_path: Path, folder: Path, make: Callable[[Path], Path], problem: str
) -> None:
    with pytest.raises(DataError, match=problem):
        unpack(make(tmp_path / "archive"), folder, BOUNDS)
    assert sum(len(content) for content in written(folder).values()) <= (1 << 20)


def test_a_tar_cut_short_and_a_zip_with_a_changed_byte_are_refused(tmp_path: Path, folder: Path) -> None:
    cut = tarred(tmp_path / "t", member("a", 100_000), mode="w:gz")
    cut.write_bytes(cut.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(cut, folder, BOUNDS)
    archive = zipped(tmp_path / "z", {"b": b"some bytes"})
    archive.write_bytes(archive.read_bytes().replace(b"some bytes", b"same bytes"))
    with pytest.raises(DataError, match="cannot be unpacked: BadZipFile: Bad CRC-32"):
        unpack(archive, folder, BOUNDS)
