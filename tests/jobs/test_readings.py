"""Files of runs -> rows: each line once, whatever is cut, torn or written anew in between."""

from __future__ import annotations

import json
from pathlib import Path

from sqlalchemy import select

from raydml.jobs.readings import read_run, signature
from raydml.jobs.store import JobStore
from raydml.jobs.tables import JobRow
from raydml.training.record import RunRecord
from tests.jobs.cluster import FakeAttempt, FakeCluster
from tests.jobs.conftest import a_spec


class Reader:
    """A job whose run's folder is read when the test says so."""

    def __init__(self, store: JobStore, home: Path) -> None:
        self.store, self.job = store, store.create(a_spec()).id
        self.run = home / "runs" / self.job
        self.writer = FakeAttempt(FakeCluster(), home, self.job)
        self.record = RunRecord(self.run)

    def read(self) -> list[int]:
        """Steps of all metrics that are known then."""
        with self.store.database.transaction() as session:
            read_run(session, session.scalars(select(JobRow).where(JobRow.id == self.job)).one(), self.run, 5)
        metrics = self.store.metrics(self.job, limit=1000)
        assert [metric.seq for metric in metrics] == list(range(1, len(metrics) + 1))
        return [metric.step for metric in metrics]


def test_every_line_is_read_once_and_a_line_is_read_when_it_is_whole(store: JobStore, home: Path) -> None:
    reader = Reader(store, home)
    assert reader.read() == []
    for step in (1, 2):
        reader.writer.step(step)
    with reader.record.metrics_path.open("a") as file:
        file.write('{"step": 3, "lo')
    assert reader.read() == [1, 2]
    assert reader.read() == [1, 2]
    with reader.record.metrics_path.open("a") as file:
        file.write('ss": 0.5}\n')
    assert reader.read() == [1, 2, 3]


def test_steps_that_are_taken_again_come_again_and_those_before_do_not(store: JobStore, home: Path) -> None:
    reader = Reader(store, home)
    for step in range(1, 6):
        reader.writer.step(step)
    assert reader.read() == [1, 2, 3, 4, 5]
    reader.record.forget_after(3)
    assert reader.read() == [1, 2, 3, 4, 5]
    reader.writer.step(4, seconds=2)
    reader.writer.step(5, seconds=2)
    assert reader.read() == [1, 2, 3, 4, 5, 4, 5]
    reader.record.forget_after(4)
    for step in (5, 6):
        reader.writer.step(step, seconds=3)
    assert reader.read() == [1, 2, 3, 4, 5, 4, 5, 5, 6]


def test_lines_that_nobody_read_before_the_file_was_written_anew_are_not_lost(store: JobStore, home: Path) -> None:
    reader = Reader(store, home)
    reader.writer.step(1)
    assert reader.read() == [1]
    for step in (2, 3, 4):
        reader.writer.step(step)
    reader.record.forget_after(3)
    reader.writer.step(4, seconds=2)
    assert reader.read() == [1, 2, 3, 4]


def test_what_an_owner_may_wait_for_is_an_event_besides(store: JobStore, home: Path) -> None:
    reader = Reader(store, home)
    reader.writer.change(2, "start")
    reader.writer.step(1)
    reader.record.log(step=1, validation={"map_at_r": 0.5}, time=2.0)
    reader.record.log(step=1, warning={"rule": "collapse", "action": "warn", "message": "flat"}, time=2.0)
    reader.record.log(step=1, failed_save="no space", time=2.0)
    reader.writer.checkpoint(1)
    reader.read()
    events = [(event.type, event.data) for event in store.events(reader.job)[1:]]
    assert [type for type, _ in events] == ["membership", "evaluation", "watch", "watch", "checkpoint"]
    assert events[1][1] == {"step": 1, "metrics": {"map_at_r": 0.5}}
    assert events[0][1]["after"] == 2
    assert [event.seq for event in store.events(reader.job)] == list(range(1, 7))
    assert store.get(reader.job).progress == {"workers": 1, "attempt": 0, "step": 1, "steps": 1000, "loss": 1.0}


def test_a_checkpoint_is_told_once_and_remembered_when_it_is_gone(store: JobStore, home: Path) -> None:
    reader = Reader(store, home)
    for step in (10, 20):
        reader.writer.checkpoint(step)
    (reader.run / "checkpoints" / "step-00000030").mkdir()  # not whole
    reader.read()
    (reader.run / "checkpoints" / "step-00000010" / "checkpoint.json").unlink()
    (reader.run / "checkpoints" / "step-00000010").rmdir()
    reader.read()
    found = [(checkpoint.step, checkpoint.removed_at) for checkpoint in store.checkpoints(reader.job)]
    assert found == [(10, 5), (20, None)]
    assert [event.data["step"] for event in store.events(reader.job) if event.type == "checkpoint"] == [10, 20]


def test_numbers_that_json_does_not_have_are_none(store: JobStore, home: Path) -> None:
    reader = Reader(store, home)
    reader.run.mkdir(parents=True)
    reader.record.metrics_path.write_text(json.dumps({"step": 1, "loss": float("nan"), "more": [float("inf")]}) + "\n")
    reader.read()
    assert store.metrics(reader.job)[0].data == {"step": 1, "loss": None, "more": [None]}


def test_the_signature_differs_when_there_is_something_to_read(store: JobStore, home: Path) -> None:
    reader = Reader(store, home)
    seen = [signature(reader.run, reader.run / "study")]
    for act in (
        lambda: reader.writer.step(1),
        lambda: reader.writer.change(1),
        lambda: reader.writer.checkpoint(1),
        lambda: reader.record.forget_after(1),  # the same bytes in another file
    ):
        act()
        seen.append(signature(reader.run, reader.run / "study"))
    assert len(set(seen)) == 5
