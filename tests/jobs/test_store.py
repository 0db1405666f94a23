"""What owners may ask of jobs, on SQLite and on a real Postgres."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from raydml.errors import CheckpointError, JobChanged, JobConflict, JobNotFound, SpecError
from raydml.files import sha256_file, write_bytes, write_json
from raydml.jobs.changes import move
from raydml.jobs.database import Database
from raydml.jobs.states import LIVE, MOVES, STATES, TERMINAL, State
from raydml.jobs.store import JobStore
from raydml.jobs.tables import JobRow
from raydml.spec import JobSpec
from tests.jobs.conftest import Clock, a_spec

OURS, THEIRS = "prj_" + "a" * 26, "prj_" + "b" * 26


@pytest.fixture
def store(either: Database, home: Path, clock: Clock) -> JobStore:
    return JobStore(either, home, clock)


def put(store: JobStore, job: str, *path: State) -> None:
    """Bring it to a state, as a supervisor would."""
    with store.database.transaction() as session:
        row = session.scalars(select(JobRow).where(JobRow.id == job)).one()
        for state in path:
            move(session, row, state, 5)


# How a job gets to each state.
WAYS: dict[State, tuple[State, ...]] = {
    "queued": (),
    "starting": ("starting",),
    "running": ("starting", "running"),
    "resizing": ("starting", "running", "resizing"),
    "recovering": ("starting", "recovering"),
    "stopping": ("starting", "stopping"),
    "paused": ("paused",),
    "succeeded": ("starting", "running", "succeeded"),
    "failed": ("failed",),
    "cancelled": ("cancelled",),
}


def test_a_job_is_what_was_asked_for(store: JobStore) -> None:
    spec = a_spec()
    job = store.create(spec, project=OURS, name="mine", labels={"b": "2", "a": "1"}, priority=7, deadline_seconds=60)
    assert store.get(job.id) == job
    assert (job.state, job.name, job.labels, job.priority) == ("queued", "mine", {"a": "1", "b": "2"}, 7)
    assert job.spec == JobSpec.model_validate(spec).model_dump(mode="json")
    assert (job.workers.min, job.workers.max, job.attempt, job.version) == (1, 4, 0, 1)
    assert [event.type for event in store.events(job.id)] == ["state"]
    with pytest.raises(SpecError, match="loss"):
        store.create(a_spec(loss={"kind": "nothing"}))


def test_pages_give_each_job_once_newest_first_whatever_is_made_meanwhile(store: JobStore) -> None:
    made = [store.create(a_spec(), labels={"odd": str(number % 2)}, name=f"n{number % 3}").id for number in range(7)]
    seen, after = [], None
    while True:
        page = store.list(limit=3, after=after)
        seen += [job.id for job in page.items]
        store.create(a_spec())
        if page.next is None:
            break
        after = page.next
    assert seen == made[::-1]
    some = store.list(labels={"odd": "1"}, name="n0", states=["queued"])
    assert [job.id for job in some.items] == [made[3]]
    assert store.list(states=["paused", "failed"]).items == ()
    with pytest.raises(SpecError, match="state: sleeping"):
        store.list(states=["sleeping"])  # type: ignore[list-item]


def test_nobody_sees_or_changes_another_owners_job(store: JobStore) -> None:
    job = store.create(a_spec(), project=OURS).id
    attempts: list[Callable[[], object]] = [
        lambda: store.get(job, THEIRS),
        lambda: store.patch(job, priority=1, project=THEIRS),
        lambda: store.ask("cancel", job, project=THEIRS),
        lambda: store.resize(job, None, 2, project=THEIRS),
        lambda: store.fork(job, project=THEIRS),
        lambda: store.events(job, project=THEIRS),
        lambda: store.metrics(job, project=THEIRS),
        lambda: store.checkpoints(job, project=THEIRS),
        lambda: store.attempts(job, project=THEIRS),
    ]
    for attempt in attempts:
        with pytest.raises(JobNotFound):
            attempt()
    assert store.list(project=THEIRS).items == ()
    assert store.list(project=OURS).items == (store.get(job, OURS),)
    assert store.get(job).version == 1


def test_a_patch_that_changes_nothing_is_no_new_version(store: JobStore) -> None:
    job = store.create(a_spec(), labels={"a": "1"}, priority=2)
    nothing: list[dict[str, Any]] = [{}, {"labels": {"a": "1", "b": None}}, {"priority": 2}, {"max_workers": 4}]
    for changes in nothing:
        assert store.patch(job.id, **changes) == job, changes
    something: list[dict[str, Any]] = [
        {"labels": {"a": "2"}},
        {"labels": {"a": None}},
        {"priority": 3},
        {"max_workers": 3},
    ]
    for number, changes in enumerate(something, start=1):
        assert store.patch(job.id, **changes).version == job.version + number, changes


def test_a_patch_of_an_older_version_is_refused_and_changes_nothing(store: JobStore) -> None:
    job = store.create(a_spec(), labels={"a": "1"})
    changed = store.patch(job.id, labels={"a": None, "b": "2"}, priority=3, max_workers=2, version=job.version)
    assert (changed.labels, changed.priority, changed.workers.max) == ({"b": "2"}, 3, 2)
    with pytest.raises(JobChanged, match=f"is of version {changed.version}, not {job.version}"):
        store.patch(job.id, priority=9, version=job.version)
    assert store.get(job.id) == changed
    with pytest.raises(SpecError, match="workers"):
        store.resize(job.id, 3, 2)


# A verb, a state -> the state after it; None where it is refused.
EXPECTED: dict[tuple[str, State], State | None] = {
    **{(verb, state): None for verb in ("pause", "cancel", "kill", "resume") for state in TERMINAL},
    **{(verb, state): "stopping" for verb in ("pause", "cancel", "kill") for state in LIVE},
    **{("cancel", state): "cancelled" for state in ("queued", "paused")},
    **{("kill", state): "cancelled" for state in ("queued", "paused")},
    **{("pause", state): "paused" for state in ("queued", "paused")},
    **{("resume", state): state for state in LIVE | {"queued"}},
    ("resume", "stopping"): None,
    ("resume", "paused"): "queued",
}


def test_every_verb_in_every_state(store: JobStore) -> None:
    assert {state for _, state in EXPECTED} == set(STATES) == set(MOVES) == set(WAYS)
    for (verb, state), after in EXPECTED.items():
        job = store.create(a_spec()).id
        put(store, job, *WAYS[state])
        if after is None:
            before = store.get(job)
            with pytest.raises(JobConflict, match=job):
                store.ask(verb, job)
            assert store.get(job) == before
        else:
            once = store.ask(verb, job)
            assert once.state == after, (verb, state)
            if after not in TERMINAL:
                assert store.ask(verb, job) == once, "asked again, nothing changes"


def test_a_stronger_wish_replaces_a_weaker_one_and_not_the_other_way_round(store: JobStore) -> None:
    job = store.create(a_spec()).id
    put(store, job, "starting")
    wishes = [store.ask(verb, job).desired for verb in ("pause", "cancel", "pause", "kill", "cancel")]
    assert wishes == ["pause", "cancel", "cancel", "kill", "kill"]


def test_many_who_change_one_job_at_once_leave_events_without_gap_or_repeat(store: JobStore) -> None:
    job = store.create(a_spec()).id

    def change(number: int) -> None:
        store.resize(job, 1, 1 + number % 4)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(change, range(40)))
    found = store.get(job)
    assert [event.seq for event in store.events(job, limit=1000)] == list(range(1, found.last_event + 1))
    assert [event.seq for event in store.events(job, after=3, limit=2)] == [4, 5]
    assert found.version == found.last_event
    assert store.heads([job, "job_none"])[job].last_event == found.last_event


def test_a_fork_begins_with_a_whole_checkpoint_under_its_own_spec(store: JobStore, home: Path) -> None:
    job = store.create(a_spec(), labels={"a": "1"})
    for step in (10, 20):
        folder = home / "runs" / job.id / "checkpoints" / f"step-{step:08d}"
        write_bytes(folder / "state.safetensors", b"tensors %d" % step)
        digest = sha256_file(folder / "state.safetensors")
        header = {"step": step, "state_sha256": "00", "file_sha256": digest, "parts": {}, "best": {"step": 1}}
        write_json(folder / "checkpoint.json", header | {"spec_digest": "parent's"})
    fork = store.fork(job.id, changes={"train": {"optimizer": {"lr": 0.5}}}, name="forked")
    assert fork.parent is not None and (fork.parent.job, fork.parent.step) == (job.id, 20)
    assert (fork.name, fork.labels, fork.spec["train"]["optimizer"]["lr"]) == ("forked", {"a": "1"}, 0.5)
    copied = home / "runs" / fork.id / "checkpoints" / "step-00000020"
    header = json.loads((copied / "checkpoint.json").read_text())
    assert header["spec_digest"] == JobSpec.model_validate(fork.spec).digest() and header["best"] is None
    assert (copied / "state.safetensors").read_bytes() == b"tensors 20"
    assert store.fork(job.id, step=10).parent != fork.parent
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 15; there are \[10, 20\]"):
        store.fork(job.id, step=15)
    write_bytes(folder / "state.safetensors", b"rotten")
    count = len(store.list().items)
    with pytest.raises(CheckpointError, match="is damaged"):
        store.fork(job.id)
    assert len(store.list().items) == count
