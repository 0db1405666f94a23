"""What is decided of one job, case by case: nothing here acts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from raydml.jobs.decisions import (
    FINAL,
    AskToStop,
    Close,
    Decision,
    End,
    EndProcess,
    Expire,
    Grant,
    Move,
    Rules,
    Seen,
    Snapshot,
    Start,
    Submit,
    Try,
    Watched,
    decide,
)
from raydml.jobs.sharing import Need

RULES = Rules(retries=2, stop_seconds=10, longest_pause=4)
TRY = Try(1, True, "alive", True, None, 1, 4, (1, 2, 4), 4, False)
JOB = Watched("job", "running", "run", None, Need("job", 0, 1, 4, 1.0), 4, TRY, 0, 0, None, None)


def decided(job: Watched, now: int = 1000, cpus: float = 4.0) -> list[Decision]:
    return decide(Snapshot(now, cpus, (job,)), RULES)


def tried(**changes: Any) -> Watched:
    return replace(JOB, open=replace(TRY, **changes))


def test_a_job_that_does_well_is_left_alone() -> None:
    assert decided(JOB) == []


def test_what_waits_starts_and_what_is_to_wait_longer_does_not() -> None:
    queued = replace(JOB, state="queued", open=None, granted=None)
    assert decided(queued) == [Start("job", 4)]
    assert decided(replace(queued, state="recovering", not_before=1001)) == []
    assert decided(queued, cpus=2.5) == [Start("job", 2)]


def test_an_attempt_that_nobody_has_heard_of_is_submitted_and_one_that_runs_is_known() -> None:
    starting = replace(tried(submitted=False, process=None, working=False), state="starting")
    assert decided(starting) == [Submit("job")]
    assert decided(replace(tried(submitted=False, working=False), state="starting")) == [Seen("job")]
    assert decided(replace(starting, desired="cancel", state="stopping")) == [
        Close("job", "interrupted", "cancel was asked for", "cancelled", "asked")
    ]


def test_a_stop_is_asked_for_then_ended() -> None:
    stopping = replace(JOB, state="stopping", desired="pause", asked_at=0)
    assert decided(stopping, now=9999) == [AskToStop("job")]
    assert decided(stopping, now=10_001) == [EndProcess("job")]
    assert decided(replace(stopping, desired="kill")) == [EndProcess("job")]
    gone = replace(stopping, open=replace(TRY, process="gone"))
    assert decided(gone) == [Close("job", "lost", "pause was asked for", "paused", "asked")]
    assert decided(replace(stopping, open=None)) == [Move("job", "paused", "asked", "pause was asked for")]


def test_a_success_counts_whatever_was_asked_meanwhile() -> None:
    end = End("succeeded", "", "", {"a": 1})
    done = Close("job", "succeeded", "", "succeeded", result={"a": 1})
    assert decided(tried(end=end)) == [done]
    assert decided(replace(tried(end=end), state="stopping", desired="cancel")) == [done]


@pytest.mark.parametrize("kind", [*FINAL, "ResourceError", "RuntimeError", "RunExists"])
def test_errors_that_would_come_again_fail_and_others_are_tried_again(kind: str) -> None:
    (close,) = decided(tried(process="gone", end=End("failed", kind, "why", None)))
    assert isinstance(close, Close)
    assert (close.to, close.message) == ("failed" if kind in FINAL else "recovering", "why")


def test_the_pause_doubles_and_ends_with_the_budget() -> None:
    lost = tried(process="gone")
    closes = [decided(replace(lost, fruitless=number))[0] for number in range(3)]
    assert [(each.to, each.wait, each.counts) for each in closes if isinstance(each, Close)] == [
        ("recovering", 1.0, True),
        ("recovering", 2.0, True),
        ("failed", 0.0, True),
    ]
    (further,) = decided(replace(tried(process="gone", further=True), fruitless=2))
    assert isinstance(further, Close) and (further.to, further.wait, further.counts) == ("recovering", 0.0, False)


def test_workers_change_to_what_can_be_used_of_the_share() -> None:
    assert decided(JOB, cpus=3.0) == [Grant("job", 2)]
    resizing = replace(tried(workers=2), state="resizing", granted=2)
    assert decided(resizing, cpus=3.0) == [Move("job", "running")]
    assert decided(replace(resizing, open=replace(TRY, workers=4)), cpus=3.0) == []


def test_limits_that_the_attempt_did_not_begin_with_take_a_new_attempt() -> None:
    wider = replace(JOB, need=replace(JOB.need, max=6))
    assert decided(wider, cpus=8.0) == [AskToStop("job")]
    assert decided(wider, cpus=4.0) == [], "not before there is room"


def test_a_deadline_stops_what_runs_and_fails_what_does_not() -> None:
    assert decided(replace(JOB, deadline_at=1000)) == [Expire("job")]
    paused = replace(JOB, state="paused", desired="pause", open=None, deadline_at=1000)
    assert [each.to for each in decided(paused) if isinstance(each, Move)] == ["failed"]
    expired = replace(JOB, state="stopping", desired="cancel", reason="deadline_exceeded", open=None)
    assert decided(expired) == [Move("job", "failed", "deadline_exceeded", "its deadline passed")]
