"""Data sets of a server: uploaded in parts that need not be sent again, or named where they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from raydml.client.calls import LONG, Call, Pages, Recipe, key, nothing
from raydml.client.dataset_documents import Dataset, Report
from raydml.client.resource import Resource, S, iterating, operation
from raydml.client.retries import Retries
from raydml.client.steps import Pause, Steps
from raydml.errors import DataError, WaitedTooLong

ONE = "/v1/datasets/{dataset}"
UNFINISHED = ("uploading", "failed")  # states in which parts are taken
RAW = {"Content-Type": "application/octet-stream"}
LONGEST_PAUSE = 2.0  # seconds between two looks at a data set that is waited for
# The end of a file's name -> what an upload of it is.
KINDS = {
    ".zip": "archive", ".tar": "archive", ".tgz": "archive", ".tar.gz": "archive", ".tar.xz": "archive",
    ".tar.bz2": "archive", ".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".npz": "npz",
}  # fmt: skip


class Datasets(Resource[S]):
    """All data sets of the key's project."""

    @operation
    def upload(
        self,
        path: str | Path,
        name: str | None = None,
        kind: str | None = None,
        *,
        resume: str | None = None,
        request: str | None = None,
    ) -> Recipe[Dataset]:
        """Send a file, a zip or tar of class folders, a table or an .npz: the data set, which the server checks next.

        `resume` is the id of an upload of this file that broke off: only the parts that are missing are sent.
        """
        file, name_of_it = Path(path), key(request)

        def steps(retries: Retries) -> Steps[Dataset]:
            what = "" if resume is not None else kind or _kind(file)
            facts = _facts(file)
            if resume is not None:
                made = yield from _get(resume).ask(retries)
                if (made.size, made.sha256) != (facts["size"], facts["sha256"]):
                    raise DataError(f"data set {resume} is an upload of another file than {file}", dataset=resume)
            else:
                body = {"name": name or file.name.split(".")[0], "kind": what, **facts}
                begun = Call("POST", "/v1/datasets", Dataset.model_validate, body=body, key=name_of_it)
                made = yield from begun.ask(retries)
            if made.state in UNFINISHED:
                with _opened(file) as opened:
                    yield from _send(made, opened, retries)
            done = Call("POST", f"{ONE}/complete", Dataset.model_validate, {"dataset": made.id}, repeatable=True)
            return (yield from done.ask(retries))

        return Recipe(steps)

    @operation
    def register(self, path: str, name: str, *, request: str | None = None) -> Call[Dataset]:
        """A data set of what lies at a path of the server's, under one of its roots; it is checked next."""
        body = {"name": name, "path": path}
        return Call("POST", "/v1/datasets", Dataset.model_validate, body=body, key=key(request))

    @operation
    def get(self, id: str) -> Call[Dataset]:
        """A data set, and which parts of its upload are there."""
        return _get(id)

    @iterating
    def list(self, page_size: int = 100) -> Pages[Dataset]:
        """Data sets, the newest first."""

        def page(cursor: Any) -> Call[tuple[Any, Any]]:
            return Call("GET", "/v1/datasets", _page, query={"limit": page_size, "cursor": cursor})

        return Pages(page)

    @operation
    def wait(self, id: str, timeout: float | None = None) -> Recipe[Dataset]:
        """The data set, once it was checked: DataError where it failed, with the reason. WaitedTooLong."""

        def steps(retries: Retries) -> Steps[Dataset]:
            began, pause = retries.clock(), 0.1
            while True:
                found = yield from _get(id).ask(retries)
                if found.state == "ready":
                    return found
                if found.state == "failed":
                    raise DataError(f"data set {id} cannot be used: {found.problem}", dataset=id)
                if timeout is not None and retries.clock() - began >= timeout:
                    raise WaitedTooLong(f"data set {id} is {found.state} after {timeout:g} s", dataset=id)
                yield Pause(pause)
                pause = min(LONGEST_PAUSE, pause * 1.5)

        return Recipe(steps)

    @operation
    def delete(self, id: str) -> Call[None]:
        """Remove a data set and its files, those under a root excepted; Conflict while a job uses it."""
        return Call("DELETE", ONE, nothing, {"dataset": id})

    @operation
    def validate(self, data: Mapping[str, Any]) -> Call[Report]:
        """What a job with this `data` would find; everything is read, nothing is kept."""
        body = {"data": dict(data)}
        return Call("POST", "/v1/datasets:validate", Report.model_validate, body=body, repeatable=True, seconds=LONG)


def _send(made: Dataset, file: BinaryIO, retries: Retries) -> Steps[None]:
    """The parts that are not there, or differ."""
    there = {part.number: part.sha256 for part in made.parts}
    for number in range(made.num_parts):
        file.seek(number * made.part_bytes)
        content = file.read(min(made.part_bytes, made.size - number * made.part_bytes))
        digest = hashlib.sha256(content).hexdigest()
        if there.get(number) != digest:
            names, query = {"dataset": made.id, "number": str(number)}, {"sha256": digest}
            part = Call("PUT", f"{ONE}/parts/{{number}}", nothing, names, query, content=content, headers=RAW)
            yield from part.ask(retries)


def _get(id: str) -> Call[Dataset]:
    return Call("GET", ONE, Dataset.model_validate, {"dataset": id})


def _page(read: Any) -> tuple[Any, Any]:
    return [Dataset.model_validate(item) for item in read["items"]], read["next_cursor"]


def _kind(file: Path) -> str:
    found = [kind for end, kind in KINDS.items() if file.name.lower().endswith(end)]
    if not found:
        raise DataError(f"{file}: what is it? its name ends with none of {', '.join(KINDS)}: give kind=")
    return found[0]


def _facts(file: Path) -> dict[str, Any]:
    with _opened(file) as opened:
        digest = hashlib.sha256()
        while part := opened.read(1 << 20):
            digest.update(part)
        return {"size": opened.tell(), "sha256": digest.hexdigest()}


def _opened(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
