"""Files of a job's run -> rows of its events, metrics and checkpoints: each line once, with the offset behind it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from raydml.jobs.changes import add_event
from raydml.jobs.tables import CheckpointRow, JobRow, MetricRow, ReadingRow
from raydml.training.lines import read_lines

FILES = ("events.jsonl", "metrics.jsonl")
STUDY = "study/events.jsonl"  # the key of what is read of a study
FileState = tuple[int, int] | None
Signature = tuple[FileState, FileState, FileState, tuple[str, ...]]


def signature(run: Path, study: Path) -> Signature:
    """What differs when there is something to read: inode and size of the files, names of the checkpoints."""
    events, metrics = (_inode_and_size(run / name) for name in FILES)
    return events, metrics, _inode_and_size(study / "events.jsonl"), tuple(sorted(_step_names(run)))


def read_run(session: Session, row: JobRow, run: Path, now: int) -> None:
    """Everything new in a run's folder, within the transaction that holds the job's row."""
    for line in _new_lines(session, row, run / "events.jsonl", "events.jsonl"):
        _take_membership(session, row, line, now)
    for line in _new_lines(session, row, run / "metrics.jsonl", "metrics.jsonl"):
        _take_metric(session, row, line, now)
    _take_checkpoints(session, row, run, now)


def read_study(session: Session, row: JobRow, study: Path, now: int) -> None:
    """Everything new in the folder of a sweep's study, alike; nothing of an ordinary job."""
    for line in _new_lines(session, row, study / "events.jsonl", STUDY):
        known: dict[str, int] = (row.progress or {}).get("trials", {})
        trials = known | {line["event"]: known.get(line["event"], 0) + 1}
        row.progress = (row.progress or {}) | {"attempt": row.attempt, "trials": trials}
        add_event(session, row, "trial", line | {"attempt": row.attempt}, now)


def reached(row: JobRow, step: int) -> int:
    """How far a job is, a number that grows: the step of its last checkpoint, and what happened in a sweep's study."""
    trials: dict[str, int] = (row.progress or {}).get("trials", {})
    return step + sum(trials.values())


def _new_lines(session: Session, row: JobRow, path: Path, file: str) -> list[dict[str, Any]]:
    """Whole lines behind the offset that is kept of the `file`, which moves behind them.

    The metrics are written anew, under another inode, when steps are to be taken again: then lines that are known
    already are passed over, up to the first one that is not.
    """
    found = _inode_and_size(path)
    if found is None:
        return []
    inode, size = found
    kept = session.get(ReadingRow, (row.id, file))
    if kept is None:
        kept = ReadingRow(job_id=row.id, file=file, inode=inode, offset=0)
        session.add(kept)
    anew = kept.inode != inode or size < kept.offset
    lines, kept.offset = read_lines(path, 0 if anew else kept.offset)
    kept.inode = inode
    lines = [_finite(line) for line in lines]
    return list(_unknown(session, row, lines)) if anew else lines


def _unknown(session: Session, row: JobRow, lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The lines from the first one on that is not in the database."""
    rows = session.scalars(select(MetricRow.data).where(MetricRow.job_id == row.id))
    known = {json.dumps(data, sort_keys=True) for data in rows}
    position = 0
    while position < len(lines) and json.dumps(lines[position], sort_keys=True) in known:
        position += 1
    return iter(lines[position:])


def _take_membership(session: Session, row: JobRow, line: dict[str, Any], now: int) -> None:
    row.progress = (row.progress or {}) | {"workers": line["after"], "attempt": row.attempt}
    add_event(session, row, "membership", line | {"attempt": row.attempt}, now)


def _take_metric(session: Session, row: JobRow, line: dict[str, Any], now: int) -> None:
    """A row of the metrics; what an owner may wait for is an event besides."""
    row.last_metric += 1
    time = line.get("time")
    session.add(
        MetricRow(
            job_id=row.id,
            seq=row.last_metric,
            attempt=row.attempt,
            step=line["step"],
            time=round(1000 * time) if time is not None else None,
            data=line,
        )
    )
    if "validation" in line:
        add_event(session, row, "evaluation", {"step": line["step"], "metrics": line["validation"]}, now)
    elif "warning" in line:
        add_event(session, row, "watch", {"step": line["step"], **line["warning"]}, now)
    elif "failed_save" in line:
        add_event(session, row, "watch", {"step": line["step"], "rule": "save", "message": line["failed_save"]}, now)
    else:
        steps = row.spec["train"]["steps"]
        taken = {"step": line["step"], "steps": steps, "loss": line.get("loss"), "attempt": row.attempt}
        row.progress = (row.progress or {}) | taken | {"workers": line.get("workers")}
        row.updated_at = max(now, row.updated_at)


def _take_checkpoints(session: Session, row: JobRow, run: Path, now: int) -> None:
    """Checkpoints that appeared, and those that were dropped for later ones."""
    here = set(_step_names(run))
    query = select(CheckpointRow).where(CheckpointRow.job_id == row.id)
    known = {f"step-{checkpoint.step:08d}": checkpoint for checkpoint in session.scalars(query)}
    for name in sorted(here):
        old = known.get(name)
        if (old is None or old.removed_at is not None) and (header := _header(run / "checkpoints" / name)):
            if old is None:
                old = CheckpointRow(job_id=row.id, step=int(name.removeprefix("step-")))
                session.add(old)
            old.state_sha256, old.seen_at, old.removed_at = header["state_sha256"], now, None
            add_event(session, row, "checkpoint", {"step": old.step, "state_sha256": old.state_sha256}, now)
    for name, checkpoint in known.items():
        if name not in here and checkpoint.removed_at is None:
            checkpoint.removed_at = now


def _header(folder: Path) -> dict[str, Any] | None:
    """What a checkpoint says of itself; None where it went meanwhile, or is damaged."""
    try:
        header: dict[str, Any] = json.loads((folder / "checkpoint.json").read_text())
    except (OSError, ValueError):
        return None
    return header if "state_sha256" in header else None


def _step_names(run: Path) -> list[str]:
    try:
        names = os.listdir(run / "checkpoints")
    except FileNotFoundError:
        return []
    return [name for name in names if name.startswith("step-") and name.removeprefix("step-").isdigit()]


def _inode_and_size(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size


def _finite(value: Any) -> Any:
    """The value with None for what JSON cannot say: NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value
