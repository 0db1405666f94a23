"""The process that looks at one data set for a server: a JSON document on stdin, another one on stdout.

It unpacks and decodes what somebody unknown made, within bounds of memory and pixels that a bomb meets before the
server does. `found` starts it.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

from raydml.errors import DataError, Interrupted, RaydmlError
from raydml.files import digest_of_json, sha256_file, whole_folder
from raydml.jobs.unpacking import Bounds, unpack

_LOOK = 0.5  # seconds between two looks at whether the server is to stop
_SHOWN = 100  # problems of a report
_TABLES = {"parquet": "table.parquet", "csv": "table.csv", "jsonl": "table.jsonl", "npz": "arrays.npz"}


@dataclass(frozen=True)
class Question:
    """What is to be looked at: an uploaded file that is to become `folder`, or a path that stays where it is."""

    path: str
    kind: str  # archive, parquet, csv, jsonl, npz or path
    folder: str | None
    sha256: str | None
    home: str
    bounds: dict[str, int]
    pixels: int  # of one picture
    memory: int  # bytes of address space
    spec: dict[str, Any] | None = None  # the `data` of a spec, where it was said how the data is to be read


def found(question: Question, seconds: float, stopped: threading.Event) -> dict[str, Any]:
    """The report of another process. Raises DataError with what is wrong, also where it took too much time or memory,
    and Interrupted once `stopped`."""
    command = (sys.executable, "-m", "raydml.jobs.dataset_check")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    until = time.monotonic() + seconds
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment) as process:
        said, asked = b"", json.dumps(asdict(question)).encode()
        try:
            while process.returncode is None:
                with suppress(subprocess.TimeoutExpired):
                    said, _ = process.communicate(asked, timeout=_LOOK)
                asked = b""  # it has it
                if stopped.is_set():
                    raise Interrupted("the server is stopping")
                if process.returncode is None and time.monotonic() > until:
                    raise DataError(f"looking at the data took more than {seconds:g} s: send it in smaller data sets")
        finally:
            process.kill()
    lines = said.splitlines()
    if process.returncode or not lines:
        raise DataError("the process that looked at the data died over it: it is broken, or unpacks to too much")
    answer: dict[str, Any] = json.loads(lines[-1])
    if "error" in answer:
        raise DataError(answer["error"])
    return answer


def main() -> None:
    """Answer the one question."""
    question = Question(**json.loads(sys.stdin.buffer.read()))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no answer
    resource.setrlimit(resource.RLIMIT_AS, (question.memory, question.memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        answer = _looked_at(question)
    except RaydmlError as error:
        answer = {"error": re.sub(r"\S*/\.tmp-[0-9a-f]+(/|\b)", "", error.message)}  # where it lies is not said
    except MemoryError:
        answer = {"error": f"the data takes more than {question.memory} bytes of memory: send smaller data sets"}
    out.write(json.dumps(answer) + "\n")
    out.flush()


def _looked_at(question: Question) -> dict[str, Any]:
    if question.folder is None:
        return _report(Path(question.path), question)
    upload, folder = Path(question.path), Path(question.folder)
    if sha256_file(upload) != question.sha256:
        raise DataError("the upload's SHA-256 is not the one that was announced: send the parts that differ again")
    with whole_folder(folder) as draft:
        if question.kind == "archive":
            unpack(upload, draft, Bounds(**question.bounds))
            heart = _heart(draft)
        else:
            heart = draft / _TABLES[question.kind]
            os.link(upload, heart)
        report = _report(heart, question)
        report["path"] = os.path.relpath(report["path"], draft)
    return report


def _heart(folder: Path) -> Path:
    """What lies below folders that hold one folder alone, as archives of a folder do."""
    while len(inside := [path for path in folder.iterdir() if path.name != "__MACOSX"]) == 1:
        if inside[0].suffix == ".npz":
            return inside[0]
        if not inside[0].is_dir() or inside[0].name in ("train", "validation", "test"):
            break
        folder = inside[0]
    return folder


@contextmanager
def _pictures_of_at_most(pixels: int) -> Iterator[None]:
    """Inside, a picture of more `pixels` is an error of Pillow's; outside, Pillow is as it was."""
    from PIL import Image

    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _report(path: Path, question: Question) -> dict[str, Any]:
    """Everything is read once. Raises DataError where a spec could not use the data."""
    from pydantic import TypeAdapter, ValidationError

    from raydml.data import DataReport
    from raydml.data.survey import survey
    from raydml.spec import DataSpec
    from raydml.starter import data_of

    _refuse_bombs(path, question)
    try:
        asked = question.spec
        spec: Any = data_of(path) if asked is None else TypeAdapter(DataSpec).validate_python(asked)
    except ValidationError as error:
        raise DataError(f"data: {error.error_count()} mistakes, such as {error.errors()[0]['msg']}") from error
    with _pictures_of_at_most(question.pixels):
        looked = survey(spec, Path(question.home))
    report: DataReport = looked.dataset.report
    bombs = [name for name, reason in report.skipped if "DecompressionBomb" in reason]
    if bombs:
        raise DataError(f"{_plain(bombs[0], path)} unpacks to more than {question.pixels} pixels: make it smaller")
    sizes = Counter(looked.dataset.items.labels.tolist())
    return {
        "path": str(spec.path),
        "data_kind": spec.kind,
        "digest": _digest(path),
        "items": len(looked.dataset.items.ids),
        "classes": len(looked.dataset.items.class_names),
        "smallest_class": min(sizes.values()),
        "largest_class": max(sizes.values()),
        "images_by_split": report.images,
        "classes_by_split": report.classes,
        "shared_classes": report.shared_classes,
        "duplicates": report.num_duplicates,
        "longest_side": max(looked.sides, default=None),
        "bad_items": len(report.skipped),
        "problems": [
            {"item": _plain(name, path), "reason": _plain(reason, path)} for name, reason in report.skipped[:_SHOWN]
        ],
    }


def _refuse_bombs(path: Path, question: Question) -> None:
    """Arrays and tables say in their headers how much they hold; more than the bounds is refused unread."""
    import zipfile

    import pyarrow.parquet

    most = question.bounds["unpacked_bytes"]
    for file in [path] if path.is_file() else sorted(path.glob("*")):
        size = 0
        try:
            if file.suffix == ".npz":
                with zipfile.ZipFile(file) as archive:
                    size = sum(info.file_size for info in archive.infolist())
            elif file.suffix == ".parquet":
                facts = pyarrow.parquet.ParquetFile(file).metadata
                size = sum(facts.row_group(number).total_byte_size for number in range(facts.num_row_groups))
        except (OSError, ValueError, zipfile.BadZipFile):
            continue  # whoever reads it next says what is wrong with it
        if size > most:
            raise DataError(f"{file.name} unpacks to {size} bytes, and {most} are taken")


def _digest(path: Path) -> str:
    """SHA-256 over the names and contents of all files."""
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    base = path.parent if path.is_file() else path
    return digest_of_json([[each.relative_to(base).as_posix(), sha256_file(each)] for each in files])


def _plain(text: str, path: Path) -> str:
    """Without the server's own folders."""
    return text.replace(f"{path}/", "").replace(f"{path.parent}/", "")


if __name__ == "__main__":
    main()
