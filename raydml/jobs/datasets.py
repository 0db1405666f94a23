"""Data sets of a server: uploaded in parts, in any order and again, or lying under a root; then checked.

An upload is one file, `home/uploads/ID`, into which each part is written where it belongs; a part counts once its row
is there, which comes after its bytes are on the disk. What was checked lies in the project's `datasets/ID`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import ForeignKey, func, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from raydml.errors import DataError, Interrupted, QuotaExceeded, RaydmlError, RecordConflict, RecordNotFound
from raydml.files import remove_folder, sync_folder
from raydml.jobs.database import Base, Database, Document, Milliseconds
from raydml.jobs.dataset_check import Question, found
from raydml.jobs.ids import milliseconds, new_id
from raydml.jobs.projects import Owned, owned, project_home
from raydml.jobs.states import TERMINAL
from raydml.jobs.tables import JobRow


class DatasetRow(Base, Owned):
    """One data set. `state`: uploading, checking, ready or failed; `path`, once ready, is where a spec finds it."""

    __tablename__ = "datasets"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    kind: Mapped[str]  # archive, parquet, csv, jsonl, npz; path: it lies under a root
    state: Mapped[str]
    size: Mapped[int] = mapped_column(Milliseconds)  # bytes of the upload
    sha256: Mapped[str | None]
    part_bytes: Mapped[int] = mapped_column(Milliseconds)
    path: Mapped[str | None]
    report: Mapped[dict[str, Any] | None] = mapped_column(Document)
    problem: Mapped[str | None]
    created_by: Mapped[str]
    created_at: Mapped[int] = mapped_column(Milliseconds)
    updated_at: Mapped[int] = mapped_column(Milliseconds)

    @property
    def num_parts(self) -> int:
        """Of the upload; all have `part_bytes` but the last."""
        return -(-self.size // self.part_bytes)

    def part_size(self, number: int) -> int:
        """Bytes of one part, counted from 0."""
        return min(self.part_bytes, self.size - number * self.part_bytes)


class DatasetPartRow(Base):
    """A part whose bytes are on the disk."""

    __tablename__ = "dataset_parts"

    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    sha256: Mapped[str]


@dataclass(frozen=True)
class Limits:
    """How much data sets may take."""

    part_bytes: int = 8 << 20
    upload_bytes: int = 64 << 30  # of one data set
    project_bytes: int = 256 << 30  # of all uploads of a project
    datasets: int = 1000  # of a project
    files: int = 5_000_000  # of an archive
    unpacked_bytes: int = 256 << 30
    pixels: int = 40_000_000
    memory: int = 8 << 30  # of the process that looks at the data
    seconds: float = 3600.0  # that it may take


@dataclass
class Datasets:
    """The data sets of one server; for any number of threads and processes."""

    database: Database
    home: Path
    limits: Limits = field(default_factory=Limits)
    stopped: threading.Event = field(default_factory=threading.Event)  # checks end, and are taken up again later

    def upload(self, project: str, name: str, kind: str, size: int, sha256: str, by: str) -> DatasetRow:
        """Begin an upload. Raises QuotaExceeded where the project has no room for it."""
        return self._add(project, name, kind, "uploading", size, by, sha256=sha256)

    def under_root(self, project: str, name: str, path: Path, by: str) -> DatasetRow:
        """Begin with what lies at a path, which was found to be under a root; `check` comes next."""
        return self._add(project, name, "path", "checking", 0, by, path=str(path))

    def _add(self, project: str, name: str, kind: str, state: str, size: int, by: str, **facts: Any) -> DatasetRow:
        limits, now = self.limits, milliseconds()
        if size > limits.upload_bytes:
            raise QuotaExceeded(f"the data set has {size} bytes, and {limits.upload_bytes} are taken")
        with self.database.transaction() as session:
            used = select(func.count(DatasetRow.id), func.sum(DatasetRow.size)).where(DatasetRow.project_id == project)
            count, taken = session.execute(used).one()
            if count >= limits.datasets:
                raise QuotaExceeded(f"the project has {count} data sets of {limits.datasets}: delete some")
            if (taken or 0) + size > limits.project_bytes:
                raise QuotaExceeded(
                    f"the project's data sets have {taken or 0} bytes of {limits.project_bytes}, and this one has "
                    f"{size}: delete some"
                )
            row = DatasetRow(
                id=new_id("dst", now),
                project_id=project,
                name=name,
                kind=kind,
                state=state,
                size=size,
                part_bytes=limits.part_bytes,
                created_by=by,
                created_at=now,
                updated_at=now,
                **facts,
            )
            session.add(row)
            session.flush()
            return row

    def get(self, identity: str, project: str | None) -> DatasetRow:
        """The data set. Raises RecordNotFound."""
        with self.database.reading() as session:
            return _row(session, identity, project)

    def list(self, project: str | None, before: str | None, limit: int) -> Sequence[DatasetRow]:
        """The newest first; `before`: those with a smaller id."""
        query = owned(select(DatasetRow), project).order_by(DatasetRow.id.desc()).limit(limit)
        with self.database.reading() as session:
            return session.scalars(query if before is None else query.where(DatasetRow.id < before)).all()

    def parts(self, identity: str, project: str | None) -> dict[int, str]:
        """The numbers of the parts that are there, with their SHA-256."""
        with self.database.reading() as session:
            _row(session, identity, project)
            query = select(DatasetPartRow).where(DatasetPartRow.dataset_id == identity).order_by(DatasetPartRow.number)
            return {row.number: row.sha256 for row in session.scalars(query)}

    def put_part(self, identity: str, project: str | None, number: int, content: bytes, sha256: str) -> None:
        """Keep a part; it is on the disk when this returns. Again changes nothing, another content replaces it.

        Raises RecordConflict once the upload is complete, DataError where length or digest are not what they should be.
        """
        with self.database.transaction() as session:
            row = _row(session, identity, project, locked=True)
            if row.state not in ("uploading", "failed") or row.kind == "path":
                raise RecordConflict(f"data set {identity} is {row.state}: its parts cannot change any more")
            if not 0 <= number < row.num_parts:
                raise DataError(f"there is no part {number}: {row.num_parts} parts of {row.part_bytes} bytes, from 0")
            if len(content) != row.part_size(number):
                raise DataError(f"part {number} has {row.part_size(number)} bytes, and {len(content)} were sent")
            if hashlib.sha256(content).hexdigest() != sha256.lower():
                raise DataError(f"part {number} is not what was sent: its SHA-256 is not {sha256[:12]}...")
            there = session.get(DatasetPartRow, (identity, number))
            if there is not None and there.sha256 == sha256.lower():
                return
            if there is not None:
                session.delete(there)
        _write(self._upload(identity), number * row.part_bytes, content)
        with self.database.transaction() as session:
            row = _row(session, identity, project, locked=True)
            row.updated_at = milliseconds()
            session.merge(DatasetPartRow(dataset_id=identity, number=number, sha256=sha256.lower()))

    def complete(self, identity: str, project: str | None) -> DatasetRow:
        """All parts are there: it is to be checked. Raises RecordConflict with those that are missing."""
        with self.database.transaction() as session:
            row = _row(session, identity, project, locked=True)
            if row.state in ("ready", "checking"):
                return row
            counted = select(DatasetPartRow.number).where(DatasetPartRow.dataset_id == identity)
            missing = sorted(set(range(row.num_parts)) - set(session.scalars(counted)))
            if missing:
                shown = ", ".join(map(str, missing[:20]))
                raise RecordConflict(f"{len(missing)} of {row.num_parts} parts are missing: {shown}")
            row.state, row.problem, row.updated_at = "checking", None, milliseconds()
            return row

    def check(self, identity: str) -> DatasetRow:
        """Unpack and look at a data set that is complete; one process at a time, again after a kill."""
        with self._alone(identity) as first:
            row = self.get(identity, None)
            if not first or row.state != "checking":
                return row
            folder = self.folder(row)
            question = Question(
                path=str(row.path if row.kind == "path" else self._upload(identity)),
                kind=row.kind,
                folder=None if row.kind == "path" else str(folder),
                sha256=row.sha256,
                **self._bounds(),
            )
            try:
                report = found(question, self.limits.seconds, self.stopped)
            except Interrupted:
                return row
            except RaydmlError as error:
                return self._checked(identity, "failed", problem=error.message)
            target = report.pop("path")
            path = target if row.kind == "path" else os.path.normpath(folder / target)
            checked = self._checked(identity, "ready", report=report, path=str(path))
            self._upload(identity).unlink(missing_ok=True)
            return checked

    def validate(self, path: Path, spec: dict[str, Any] | None) -> dict[str, Any]:
        """The report on data at a path, of which nothing is kept. Raises DataError."""
        question = Question(path=str(path), kind="path", folder=None, sha256=None, spec=spec, **self._bounds())
        return found(question, self.limits.seconds, self.stopped)

    def unchecked(self) -> Sequence[str]:
        """Ids of those that were to be checked when a server ended."""
        with self.database.reading() as session:
            return session.scalars(select(DatasetRow.id).where(DatasetRow.state == "checking")).all()

    def _bounds(self) -> dict[str, Any]:
        limits = self.limits
        bounds = {"files": limits.files, "unpacked_bytes": limits.unpacked_bytes}
        return {"home": str(self.home), "bounds": bounds, "pixels": limits.pixels, "memory": limits.memory}

    def delete(self, identity: str, project: str | None) -> None:
        """Remove it with its files, those under a root excepted. Raises RecordConflict while a live job uses it."""
        with self.database.transaction() as session:
            row = _row(session, identity, project, locked=True)
            live = select(JobRow.id, JobRow.spec).where(
                JobRow.project_id == row.project_id, JobRow.state.not_in(TERMINAL)
            )
            users = [job for job, spec in session.execute(live) if identity in json.dumps(spec)]
            if users:
                raise RecordConflict(
                    f"data set {identity} is used by {', '.join(users[:10])}: wait, or cancel them first"
                )
            session.delete(row)
        self._remove_files(row)

    def expire(self, before: int) -> Sequence[str]:
        """Remove uploads that never became a data set and that nobody went on with since this time; their ids."""
        stale = DatasetRow.state.in_(("uploading", "failed")) & (DatasetRow.updated_at < before)
        with self.database.transaction() as session:
            rows = session.scalars(select(DatasetRow).where(stale).with_for_update()).all()
            for row in rows:
                session.delete(row)
        for row in rows:
            self._remove_files(row)
        return [row.id for row in rows]

    def _remove_files(self, row: DatasetRow) -> None:
        self._upload(row.id).unlink(missing_ok=True)
        self._lock(row.id).unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            remove_folder(self.folder(row))

    def folder(self, row: DatasetRow) -> Path:
        """Where an uploaded data set lies, once it is ready."""
        return folder_of(self.home, row.project_id) / row.id

    def _checked(self, identity: str, state: str, **facts: Any) -> DatasetRow:
        with self.database.transaction() as session:
            row = _row(session, identity, None, locked=True)
            row.state, row.updated_at = state, milliseconds()
            for name, value in facts.items():
                setattr(row, name, value)
            return row

    def _upload(self, identity: str) -> Path:
        return self.home / "uploads" / identity

    def _lock(self, identity: str) -> Path:
        return self.home / "uploads" / f"{identity}.lock"

    @contextmanager
    def _alone(self, identity: str) -> Iterator[bool]:
        """Whether nobody else is checking this data set now."""
        self._lock(identity).parent.mkdir(parents=True, exist_ok=True)
        with self._lock(identity).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True


def folder_of(home: Path, project: str) -> Path:
    """Where the uploaded data sets of a project lie."""
    return project_home(home, project) / "datasets"


def path_of(session: Session, identity: str, project: str | None) -> Path:
    """Where a spec finds the data set, which stays while the session's transaction lasts. Raises RecordNotFound, and
    RecordConflict where it is not ready."""
    row = _row(session, identity, project, shared=True)
    if row.state != "ready":
        raise RecordConflict(f"data set {identity} is {row.state}: {row.problem or 'wait until it is ready'}")
    return Path(str(row.path))


def _row(
    session: Session, identity: str, project: str | None, locked: bool = False, shared: bool = False
) -> DatasetRow:
    query = owned(select(DatasetRow).where(DatasetRow.id == identity), project)
    if locked or (shared and not session.info.get("reading")):
        query = query.with_for_update(read=shared)
    row = session.scalar(query)
    if row is None:
        raise RecordNotFound(f"there is no data set {identity[:40]}")
    return row


def _write(path: Path, offset: int, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(content)
        while rest:
            written = os.pwrite(descriptor, rest, offset)
            rest, offset = rest[written:], offset + written
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_folder(path.parent)
