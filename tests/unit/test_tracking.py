"""Trackers of a run: MLflow's and TensorBoard's own libraries, over files; and trackers that fail or are silent."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from raydml.errors import SpecError
from raydml.spec import JobSpec
from raydml.tracking import Tracking, check_installed, sender, tracking
from raydml.tracking.points import Feed, Point, Position
from raydml.tracking.tracker import Facts
from raydml.training.record import RunRecord

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::sqlalchemy.exc.SADeprecationWarning", "ignore::FutureWarning"
)  # of the libraries that are tracked with
ROWS = 8


def spec(*trackers: Any, name: str = "tracked") -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": name,
            "data": {"kind": "glyphs"},
            "batch": {"classes": 4, "samples": 2, "virtual_workers": 4},
            "loss": {"kind": "triplet"},
            "tracking": trackers,
        }
    )


def begin(record: RunRecord, state: str = "running") -> None:
    record.folder.mkdir(parents=True, exist_ok=True)
    record.change(state=state)


def train(record: RunRecord, first: int, last: int) -> None:
    """What workers log for these steps."""
    for step in range(first, last + 1):
        record.log(step=step, loss=1 / step, gradient_norm=None, workers=2, step_seconds=0.1, time=1000.0 + step)
        if step % 5 == 0:
            record.log(step=step, validation={"map_at_r": step / 100}, time=1000.0 + step)
        if step == 3:
            record.log(step=step, warning={"rule": "collapse", "message": "x", "action": "warn"}, time=1000.0 + step)


def a_run_that_is_resumed(home: Path, document: JobSpec) -> RunRecord:
    """Twelve steps, a crash, and from the checkpoint of step 8 on twenty; then it has results."""
    record = RunRecord(home / "runs" / document.name)
    begin(record)
    with Tracking(document, record, home):
        train(record, 1, 12)
        record.change(state="failed")
    record = RunRecord(record.folder)  # another process
    record.forget_after(8)
    begin(record)
    with Tracking(document, record, home):
        train(record, 9, 20)
        record.change(state="succeeded", metrics={"map_at_r": 0.5}, baseline={"map_at_r": 0.25})
    return record


WANTED_LOSSES = [(step * ROWS, pytest.approx(1 / step)) for step in range(1, 21)]
WANTED_SCORES = [(step * ROWS, pytest.approx(step / 100)) for step in (5, 10, 15, 20)]


def test_a_resumed_run_is_one_run_of_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(tracking, "PATIENCE", 100.0)  # it makes a database first
    record = a_run_that_is_resumed(tmp_path, spec({"kind": "mlflow", "experiment": "faces"}))
    assert record.read()["tracking"] == {"mlflow": "complete"}
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("faces")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "tracked")
    assert run.data.params["batch.classes"] == "4" and run.data.params["loss.kind"] == "triplet"

    def curve(name: str) -> list[tuple[int, float]]:
        return sorted((each.step, each.value) for each in client.get_metric_history(run.info.run_id, name))

    assert curve("loss") == WANTED_LOSSES
    assert curve("validation/map_at_r") == WANTED_SCORES
    assert curve("test/map_at_r") == [(20 * ROWS, 0.5)] and curve("baseline/map_at_r") == [(20 * ROWS, 0.25)]
    assert "gradient_norm" not in run.data.metrics and "time" not in run.data.metrics


def test_a_resumed_run_is_one_run_of_tensorboard(tmp_path: Path) -> None:
    record = a_run_that_is_resumed(tmp_path, spec("tensorboard"))
    assert record.read()["tracking"] == {"tensorboard": "complete"}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folders = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    assert folders == {record.folder / "tensorboard"}
    shown = EventAccumulator(str(record.folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()

    def curve(name: str) -> list[tuple[int, float]]:
        return sorted((each.step, each.value) for each in shown.Scalars(name))

    assert curve("loss") == WANTED_LOSSES
    assert curve("validation/map_at_r") == WANTED_SCORES
    assert curve("test/map_at_r") == [(20 * ROWS, 0.5)]
    (text,) = shown.Tensors("spec/text_summary")
    assert yaml.safe_load(text.tensor_proto.string_val[0].decode().strip("`\n"))["batch.classes"] == 4


class Recorded:
    """A tracker that does what it is told: raise so often, or wait for good."""

    def __init__(self, failures: int = 0, blocked: threading.Event | None = None) -> None:
        self.failures, self.blocked = failures, blocked
        self.points: list[Point] = []
        self.ended: list[str] = []
        self.opened: list[str] = []

    def open(self, spec: Any, facts: Facts) -> Recorded:
        self.opened.append(facts.key)
        return self

    def log(self, points: Sequence[Point]) -> None:
        if self.blocked is not None:
            self.blocked.wait()
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the tracker's server is away")
        self.points += points

    def end(self, state: str) -> None:
        self.ended.append(state)


def tracked_by(
    tracker: Recorded, monkeypatch: pytest.MonkeyPatch, home: Path, during: Callable[[RunRecord], None] | None = None
) -> RunRecord:
    """A run of ten steps that succeeds."""
    monkeypatch.setitem(tracking.TRACKERS, "mlflow", tracker.open)
    monkeypatch.setattr(sender, "EVERY", 0.01)
    monkeypatch.setattr(sender, "_AGAIN", 0.01)
    record = RunRecord(home / "runs" / "tracked")
    begin(record)
    with Tracking(spec("mlflow"), record, home):
        train(record, 1, 10)
        if during is not None:
            during(record)
        record.change(state="succeeded")
    return record


def steps_of(tracker: Recorded) -> list[int]:
    return [point.samples // ROWS for point in tracker.points if "loss" in point.values]


def test_a_tracker_that_fails_is_warned_about_and_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Recorded(failures=3)
    with caplog.at_level(logging.WARNING):
        record = tracked_by(tracker, monkeypatch, tmp_path)
    assert record.read()["state"] == "succeeded"
    assert record.read()["tracking"] == {"mlflow": "complete"}, "what it refused came later"
    assert steps_of(tracker) == list(range(1, 11)) and tracker.ended == ["succeeded"]
    assert "the tracker's server is away" in caplog.text and caplog.text.count("tracker_failed") == 1


def test_a_tracker_that_always_fails_leaves_the_run_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "PATIENCE", 0.5)
    record = tracked_by(Recorded(failures=10**9), monkeypatch, tmp_path)
    assert record.read()["state"] == "succeeded"
    assert "the tracker's server is away" in record.read()["tracking"]["mlflow"]


def test_a_tracker_that_does_not_answer_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "PATIENCE", 0.5)
    released = threading.Event()
    try:
        with caplog.at_level(logging.WARNING):
            record = tracked_by(Recorded(blocked=released), monkeypatch, tmp_path)
        assert record.read()["state"] == "succeeded"
        assert "no answer within 0.5 s" in record.read()["tracking"]["mlflow"]
        assert "no answer within 0.5 s" in caplog.text
    finally:
        released.set()


def test_one_key_for_all_attempts_at_a_run_and_another_for_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Recorded()
    tracked_by(tracker, monkeypatch, tmp_path)
    tracked_by(tracker, monkeypatch, tmp_path)
    tracked_by(tracker, monkeypatch, tmp_path / "other")
    first, again, other = tracker.opened
    assert first == again != other


def test_a_feed_tells_each_line_once_even_when_the_file_is_replaced(tmp_path: Path) -> None:
    record = RunRecord(tmp_path)
    feed = Feed(record.metrics_path, 1, Position())
    assert feed.read() == []
    train(record, 1, 6)
    told = [point.samples for point in feed.read()]
    assert told == [1, 2, 3, 3, 4, 5, 5, 6], "a warning of step 3 and a validation of step 5 have lines of their own"
    record.forget_after(4)
    train(record, 5, 8)
    assert [point.samples for point in feed.read()] == [7, 8]
    assert feed.position == Position(8, 1)
    assert [point.samples for point in Feed(record.metrics_path, 1, Position(5, 1)).read()] == [5, 6, 7, 8]


def test_a_library_that_is_missing_is_refused_before_work_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"mlflow is not installed: pip install 'raydml\[tracking\]'"):
        check_installed(spec("mlflow"))


def test_trackers_are_named_by_a_word_each_once_and_change_no_digest() -> None:
    plain, tracked = spec(), spec("mlflow", {"kind": "tensorboard"})
    assert [each.kind for each in tracked.tracking] == ["mlflow", "tensorboard"]
    assert plain.digest() == tracked.digest()
    with pytest.raises(ValueError, match="name each tracker once"):
        spec("mlflow", {"kind": "mlflow", "experiment": "other"})
    assert json.loads(tracked.model_dump_json())["tracking"][0] == {"kind": "mlflow", "experiment": "raydml"}
