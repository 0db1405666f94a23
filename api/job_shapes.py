"""Records of jobs -> the plain values that answers are made of."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from api.times import maybe, rfc3339
from raydml.jobs.outputs import Line
from raydml.jobs.records import Checkpoint, Event, Job, Metric


def job_document(job: Job) -> dict[str, Any]:
    """A job, as `job_documents.Job` describes it."""
    return {
        "id": job.id,
        "project": job.project,
        "kind": job.kind,
        "name": job.name,
        "labels": job.labels,
        "priority": job.priority,
        "state": job.state,
        "reason": job.reason and asdict(job.reason),
        "spec": job.spec,
        "spec_sha256": job.spec_sha256,
        "created_at": rfc3339(job.created_at),
        "updated_at": rfc3339(job.updated_at),
        "started_at": maybe(job.started_at),
        "finished_at": maybe(job.finished_at),
        "deadline_seconds": job.deadline_seconds,
        "workers": asdict(job.workers),
        "progress": job.progress,
        "attempt": job.attempt,
        "parent": job.parent and asdict(job.parent),
        "result": job.result,
        "version": job.version,
    }


def event_document(event: Event) -> dict[str, Any]:
    """An event."""
    return {"seq": event.seq, "time": rfc3339(event.time), "type": event.type, "data": event.data}


def metric_document(metric: Metric) -> dict[str, Any]:
    """A line of training."""
    return {
        "seq": metric.seq,
        "attempt": metric.attempt,
        "step": metric.step,
        "time": maybe(metric.time),
        "data": metric.data,
    }


def line_document(line: Line) -> dict[str, Any]:
    """A line of a log."""
    return {"id": line.end, "text": line.text}


def checkpoint_document(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint."""
    return {
        "step": checkpoint.step,
        "state_sha256": checkpoint.state_sha256,
        "seen_at": rfc3339(checkpoint.seen_at),
        "removed_at": maybe(checkpoint.removed_at),
    }
