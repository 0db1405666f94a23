"""Every error that raydml raises on purpose: each says what is wrong, with the numbers, and the way out.

RaydmlError
├── SpecError              the spec is wrong: unknown key, wrong type, impossible combination
├── DataError              the data is wrong: missing, empty, corrupt, too few classes
├── ResourceError          the machine or cluster cannot do this: workers, GPUs, disk
├── RunError               a run cannot go on, or cannot be started under this name
│   ├── RunExists          the name belongs to a finished run, or another process drives it
│   ├── StaleView          a member was given a view of its group that no longer holds
│   ├── TrainingDiverged   the loss or a gradient is not finite, or exploded
│   └── Interrupted        stopped on request, state kept
├── JobError               a job of a server refused a request
│   ├── JobNotFound        there is none of this id, or none that the caller may see
│   ├── JobConflict        its state does not allow what was asked
│   ├── JobChanged         somebody changed it since the caller looked
│   ├── LeaseLost          another supervisor has taken over
│   ├── JobEnded           it ended in another state than the one that was waited for
│   └── WaitedTooLong      it is not yet in the state that was waited for; it goes on
├── RecordError            a server refused a request about what it keeps: data sets, models, webhooks
│   ├── RecordNotFound     there is none of this id, or none that the caller may see
│   ├── RecordConflict     its state does not allow what was asked
│   └── QuotaExceeded      the project has as much as it may have
├── CheckpointError        a checkpoint is damaged or belongs to something else
├── CollectionError        a collection refused a request
│   ├── CollectionBusy     another process is writing for longer than was waited
│   ├── CollectionDamaged  a file or a row of it is not what was written
│   └── ModelMismatch      the query was embedded by another model than the collection
└── ServiceError           a server's answer to a client: `data` has status, problem and request_id
    ├── RequestRefused     the request is wrong (400, 413, 415, 422, ...)
    ├── AccessDenied       no key, a wrong key, or one that may not do this (401, 403)
    ├── NotFound           there is no such thing, or no longer (404, 410)
    ├── Conflict           what is there does not allow it (409, 412)
    ├── ServerBusy         nothing was done: as much waits already as may, or it is not ready (429, 503)
    ├── ServerFailed       the server's own failure (5xx), or an answer that is none of its own
    └── Unreachable        no answer, or none that is whole
"""

from __future__ import annotations

from typing import Any


class RaydmlError(Exception):
    """Base of all errors raised on purpose; `data` holds the facts behind the message.

    The message is the first argument and the facts are keywords, so that every error pickles.
    """

    def __init__(self, message: str, **data: Any) -> None:
        super().__init__(message)
        self.message = message
        self.data = data

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.data)


def _rebuild(kind: type[RaydmlError], message: str, data: dict[str, Any]) -> RaydmlError:
    return kind(message, **data)


class SpecError(RaydmlError):
    """The job spec is wrong."""


class DataError(RaydmlError):
    """The data is wrong."""


class ResourceError(RaydmlError):
    """The machine or the cluster cannot do what the spec asks."""


class RunError(RaydmlError):
    """A run cannot start or go on."""


class RunExists(RunError):
    """The run's name is taken by a finished run or by another process."""


class StaleView(RunError):
    """A member was given a view that is not newer than what it holds, or leaves it out."""


class TrainingDiverged(RunError):
    """The loss or a gradient stopped being finite, or exploded."""


class Interrupted(RunError):
    """The run was stopped on request; its state is kept."""


class JobError(RaydmlError):
    """A job of a server refused a request; nothing was changed."""


class JobNotFound(JobError):
    """There is no such job, or none that the caller may see."""


class JobConflict(JobError):
    """The job's state does not allow it."""


class JobChanged(JobError):
    """The job is of another version than the caller saw."""


class LeaseLost(JobError):
    """Another supervisor acts; this one must not."""


class JobEnded(JobError):
    """The job ended in another state than the one that was waited for."""


class WaitedTooLong(JobError):
    """The job is not yet in the state that was waited for; it goes on."""


class RecordError(RaydmlError):
    """A server refused a request about what it keeps; nothing was changed."""


class RecordNotFound(RecordError):
    """There is no such thing, or none that the caller may see."""


class RecordConflict(RecordError):
    """The state of the thing does not allow it."""


class QuotaExceeded(RecordError):
    """The project has as much as it may have."""


class CheckpointError(RaydmlError):
    """A checkpoint is damaged or belongs to another job."""


class CollectionError(RaydmlError):
    """A collection refused a request; nothing was changed."""


class CollectionBusy(CollectionError):
    """Another process is writing; the same request may be made again."""


class CollectionDamaged(CollectionError):
    """What is on the disk is not what was written."""


class ModelMismatch(CollectionError):
    """The query comes from another model than the collection's vectors."""


class ServiceError(RaydmlError):
    """A server refused a request, failed, or cannot be reached."""


class RequestRefused(ServiceError):
    """The request is wrong."""


class AccessDenied(ServiceError):
    """The key is missing or wrong, or may not do this."""


class NotFound(ServiceError):
    """There is no such thing, or no longer."""


class Conflict(ServiceError):
    """What is there does not allow the request."""


class ServerBusy(ServiceError):
    """Nothing was done; the same request may be sent again later."""


class ServerFailed(ServiceError):
    """The server failed; its log says why, under the request's id."""


class Unreachable(ServiceError):
    """No whole answer came; `data` says whether the request was sent."""
