"""Everything known of all jobs at a moment in; what to do about it out, as values. Nothing here acts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from raydml.jobs.launcher import Process
from raydml.jobs.sharing import Need, share
from raydml.jobs.states import LIVE, Desired, State

# Errors that another attempt would meet again -> the reason's code. All others are worth another attempt.
FINAL = {
    "SpecError": "wrong_spec",
    "DataError": "wrong_data",
    "TrainingDiverged": "diverged",
    "CheckpointError": "checkpoint_damaged",
    "RunError": "run_failed",
    "CollectionError": "collection_refused",
}


@dataclass(frozen=True)
class Rules:
    """How patient the supervisor is."""

    retries: int = 10  # attempts in a row that come no further than the one before
    stop_seconds: float = 120.0  # for a last checkpoint; then the process is ended
    longest_pause: float = 60.0  # seconds between attempts, which double from 1


@dataclass(frozen=True)
class End:
    """How an attempt said that it ended."""

    outcome: Literal["succeeded", "interrupted", "failed"]
    kind: str
    message: str
    result: dict[str, Any] | None


@dataclass(frozen=True)
class Try:
    """The attempt that is open: its row, its process, its files."""

    number: int
    submitted: bool
    process: Process | None  # None: nobody has heard of it
    working: bool  # its group of workers has formed
    end: End | None
    least: int  # workers, by the order that it was given
    most: int
    usable: tuple[int, ...]  # numbers of workers that it can be given; empty before it says
    workers: int | None  # that it has now
    further: bool  # it left a later checkpoint than all attempts before


@dataclass(frozen=True)
class Watched:
    """One job that is not over."""

    id: str
    state: State
    desired: Desired
    reason: str | None
    need: Need
    granted: int | None
    open: Try | None
    fruitless: int
    not_before: int
    asked_at: int | None
    deadline_at: int | None


@dataclass(frozen=True)
class Snapshot:
    """All jobs that are not over, at a moment (milliseconds since 1970), and the CPUs for workers."""

    now: int
    cpus: float
    jobs: tuple[Watched, ...]


@dataclass(frozen=True)
class Start:
    """Open the next attempt, with this many workers at first."""

    job: str
    workers: int


@dataclass(frozen=True)
class Submit:
    """Have the open attempt's process started."""

    job: str


@dataclass(frozen=True)
class Seen:
    """The open attempt's process exists, though nobody came to write that down."""

    job: str


@dataclass(frozen=True)
class Move:
    """To another state."""

    job: str
    to: State
    code: str | None = None
    message: str = ""


@dataclass(frozen=True)
class Expire:
    """The deadline has passed: a stop with a checkpoint, and then failed."""

    job: str


@dataclass(frozen=True)
class Grant:
    """Let it have this many workers from now on."""

    job: str
    workers: int


@dataclass(frozen=True)
class AskToStop:
    """Have the run save a checkpoint and stop."""

    job: str


@dataclass(frozen=True)
class EndProcess:
    """End the open attempt's process."""

    job: str


@dataclass(frozen=True)
class Close:
    """The open attempt is over; the job goes to this state. `counts` it as one that came no further."""

    job: str
    outcome: str
    message: str
    to: State
    code: str | None = None
    counts: bool = False
    wait: float = 0.0  # seconds until the next attempt
    result: dict[str, Any] | None = None


@dataclass(frozen=True)
class Explain:
    """Why it waits, without a move."""

    job: str
    code: str
    message: str


Decision = Start | Submit | Seen | Move | Expire | Grant | AskToStop | EndProcess | Close | Explain


def decide(snapshot: Snapshot, rules: Rules) -> list[Decision]:
    """What brings every job nearer to what its owner wants; at most a few steps each, the next look sees the rest."""
    waiting = [job for job in snapshot.jobs if _waits(job, snapshot.now)]
    holding = [job for job in snapshot.jobs if job.open is not None]
    dealt = share(
        snapshot.cpus,
        fixed=[(job.granted or job.need.min) * job.need.cpus for job in holding if job.desired != "run"],
        holding=[job.need for job in holding if job.desired == "run"],
        waiting=[job.need for job in waiting],
    )
    decisions: list[Decision] = []
    for job in snapshot.jobs:
        decisions += _of_one(job, dealt, snapshot, rules)
    return decisions


def _waits(job: Watched, now: int) -> bool:
    return job.open is None and job.state in ("queued", "recovering") and job.desired == "run" and job.not_before <= now


def _of_one(job: Watched, dealt: Mapping[str, int], snapshot: Snapshot, rules: Rules) -> Iterator[Decision]:
    late = job.deadline_at is not None and job.deadline_at <= snapshot.now
    if late and job.desired == "run" and job.state in LIVE:
        yield Expire(job.id)
    elif late and job.state not in LIVE:
        yield Move(job.id, "failed", "deadline_exceeded", "its deadline passed before it could end")
    elif job.open is not None:
        yield from _of_open(job, job.open, dealt, snapshot.now, rules)
    elif job.state == "stopping":
        yield _stopped(job)
    elif job.id in dealt:
        yield Start(job.id, dealt[job.id])
    elif _waits(job, snapshot.now) and job.need.min * job.need.cpus > snapshot.cpus and job.reason != "no_room":
        yield Explain(
            job.id,
            "no_room",
            f"{job.need.min} workers of {job.need.cpus:g} CPUs each do not fit on {snapshot.cpus:g} CPUs: lower "
            f"parallel.workers.min, tune.concurrency of a sweep, or add machines",
        )


def _of_open(job: Watched, open: Try, dealt: Mapping[str, int], now: int, rules: Rules) -> Iterator[Decision]:
    if not open.submitted and open.process is not None:
        yield Seen(job.id)
    if open.end is not None and (open.process != "alive" or open.end.outcome == "succeeded"):
        yield _close(job, open, open.end, rules)
    elif not open.submitted and open.process is None:
        yield Submit(job.id) if job.desired == "run" else _stopped(job, "interrupted")
    elif open.process != "alive":
        yield _lost(job, open, rules)
    elif job.desired != "run":
        late = job.asked_at is not None and now > job.asked_at + 1000 * rules.stop_seconds
        yield EndProcess(job.id) if job.desired == "kill" or late else AskToStop(job.id)
    else:
        yield from _of_working(job, open, dealt)


def _of_working(job: Watched, open: Try, dealt: Mapping[str, int]) -> Iterator[Decision]:
    if job.state == "starting" and open.working:
        yield Move(job.id, "running")
        return
    wanted = dealt.get(job.id, job.need.min)
    if not open.least <= wanted <= open.most:
        yield AskToStop(job.id)  # begun under other limits: it goes on from a checkpoint under the new ones
        return
    fitting = [number for number in open.usable if number <= wanted]
    if fitting and fitting[-1] != job.granted:
        yield Grant(job.id, fitting[-1])
    elif job.state == "resizing" and open.workers == job.granted:
        yield Move(job.id, "running")


def _close(job: Watched, open: Try, end: End, rules: Rules) -> Decision:
    if end.outcome == "succeeded":
        return Close(job.id, "succeeded", "", "succeeded", result=end.result)
    code = FINAL.get(end.kind) if end.outcome == "failed" else None
    if code is not None and job.desired in ("run", "pause"):
        return Close(job.id, "failed", end.message, "failed", code)
    if job.desired != "run":
        return _stopped(job, end.outcome, end.message)
    if end.outcome == "interrupted":
        return Close(job.id, "interrupted", end.message, "recovering", "interrupted")
    return _again(job, open, "failed", "attempt_failed", end.message, rules)


def _lost(job: Watched, open: Try, rules: Rules) -> Decision:
    if job.desired != "run":
        return _stopped(job, "lost")
    if open.process is None:
        return _again(job, open, "lost", "cluster_lost", "the cluster that ran it is gone", rules)
    return _again(job, open, "lost", "driver_lost", "its process ended without a word", rules)


def _again(job: Watched, open: Try, outcome: str, code: str, message: str, rules: Rules) -> Decision:
    """Another attempt, later each time that one came no further, until there were too many of them."""
    fruitless = 0 if open.further else job.fruitless + 1
    if fruitless > rules.retries:
        spent = f"{fruitless} attempts in a row came no further; the last one: {message}"
        return Close(job.id, outcome, spent, "failed", "budget_exhausted", counts=True)
    wait = min(rules.longest_pause, 2.0 ** (fruitless - 1)) if fruitless else 0.0
    return Close(job.id, outcome, message, "recovering", code, counts=not open.further, wait=wait)


def _stopped(job: Watched, outcome: str | None = None, message: str = "") -> Decision:
    """To where a stop leads, with or without an attempt to close."""
    to: State = "paused" if job.desired == "pause" else "cancelled"
    code, words = "asked", f"{job.desired} was asked for"
    if job.reason == "deadline_exceeded":
        to, code, words = "failed", "deadline_exceeded", "its deadline passed"
    if outcome is None:
        return Move(job.id, to, code, words)
    return Close(job.id, outcome, message or words, to, code)
