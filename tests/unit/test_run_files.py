"""What a run keeps beside its model: events, requests to resize, the lease, and where it resumes after damage."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from typer.testing import CliRunner

import raydml
from raydml import run, runs
from raydml.cli import app
from raydml.cli.progress import progress
from raydml.errors import CheckpointError, RunError, RunExists, SpecError
from raydml.membership.messages import Event
from raydml.parallel import Group, fit, world_sizes
from raydml.progress import Progress, Watch
from raydml.run import train
from raydml.runs import driven, find_run
from raydml.spec import JobSpec
from raydml.training import driver, history
from raydml.training.checkpoints import Checkpoints
from raydml.training.fleet import placement
from raydml.training.fleet.placement import Placement
from raydml.training.record import RunRecord
from raydml.training.worker import Job, Worker
from tests.distributed.harness import small_spec
from tests.unit.test_run_refusals import held_by_another_process, record_of

EVENTS = [
    Event(100.0, 1, 0, "start", 0, 2),
    Event(101.5, 2, 40, "death", 2, 1, 0.31, 0, ("worker-1",)),
    Event(109.0, 3, 55, "join", 1, 2, 0.12, 0, ("worker-2",)),
    Event(200.0, 4, 50, "resume", 0, 3, 8.5, 7),
]


def wait_for(condition: Any) -> None:
    done = threading.Event()
    for _ in range(1000):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError("nothing came within 10 s")


@pytest.fixture
def recorded(home: Path) -> RunRecord:
    """A run that trains, as its folder tells, with four events."""
    record = record_of(home)
    document = small_spec(Path("images.npz"), parallel={"workers": {"min": 2, "max": 12}}).model_dump(mode="json")
    (record.folder / "spec.yaml").write_text(yaml.safe_dump(document))
    for event in EVENTS:
        record.log_event(event, "one node less" if event.cause == "death" else "")
    record.change(state="running")
    return record


# Events


def test_events_are_read_as_they_were_logged(recorded: RunRecord) -> None:
    events = find_run("small").events
    read = [Event(**{name: event[name] for name in Event.__dataclass_fields__ if name != "note"}) for event in events]
    assert [replace(event, members=tuple(event.members)) for event in read] == EVENTS
    assert [event["samples_lost"] for event in events] == [0, 0, 0, 7 * 8 * 4]
    assert [event["note"] for event in events] == ["", "one node less", "", ""]


@pytest.mark.parametrize("cut", [1, 2, 30, 75])
def test_an_event_cut_short_by_a_kill_is_dropped_and_the_next_one_is_whole(recorded: RunRecord, cut: int) -> None:
    path = recorded.events_path
    os.truncate(path, path.stat().st_size - cut)
    assert [event["cause"] for event in recorded.events()] == ["start", "death", "join"]
    RunRecord(recorded.folder).log_event(Event(300.0, 5, 60, "drain", 3, 2))
    ended = ["resume"] if cut == 1 else []  # only its newline was missing
    assert [event["cause"] for event in recorded.events()] == ["start", "death", "join", *ended, "drain"]


def test_an_event_is_on_the_disk_before_the_call_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.readlink(f"/proc/self/fd/{number}")))
    RunRecord(tmp_path).log_event(EVENTS[0])
    assert synced == [str(tmp_path / "events.jsonl")]


def test_the_history_of_world_sizes_leaves_out_what_was_taken_again(recorded: RunRecord) -> None:
    assert find_run("small").world_size_history == [
        {"step": 0, "workers": 2},
        {"step": 40, "workers": 1},
        {"step": 50, "workers": 3},
    ]
    same = [{"step": step, "after": after} for step, after in [(0, 2), (5, 2), (5, 0), (8, 1), (8, 2), (9, 2)]]
    assert history.world_sizes(same) == [{"step": 0, "workers": 2}]
    assert history.world_sizes([]) == []


def test_all_events_in_a_line_have_no_times_in_it() -> None:
    told = [{"step": e.step, "cause": e.cause, "after": e.after, "lost": e.lost} for e in EVENTS]
    assert (
        history.summary(told)
        == "2 from step 0, 1 from step 40, 3 from step 50; 1 death, 1 join, 1 resume; 7 steps taken again"
    )
    assert history.summary(told[:1]) == "2 from step 0; no change; 0 steps taken again"
    assert history.summary([]) == ""


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_timeline_shows_cause_step_workers_and_costs(recorded: RunRecord) -> None:
    shown = call("events", "small").stdout.splitlines()
    (death,) = (line for line in shown if "death" in line)
    assert all(part in death for part in ("40", "2 -> 1", "0.31", "worker-1; one node less"))
    (resume,) = (line for line in shown if "resume" in line)
    assert all(part in resume for part in ("0 -> 3", "8.50", " 7 ", "224"))
    document = json.loads(call("events", "small", "--json").stdout)
    assert document == {"run": "small", "events": find_run("small").events}


def test_following_ends_with_the_run_and_tells_every_event_once(recorded: RunRecord, home: Path) -> None:
    shown: list[str] = []
    with held_by_another_process(home / "runs" / ".small.lease"):
        follower = threading.Thread(target=lambda: shown.append(call("events", "small", "--follow").stdout))
        follower.start()
        recorded.log_event(Event(300.0, 5, 60, "fenced", 3, 2, 3.0, 0, ("worker-0",)))
        follower.join(1.0)
        assert follower.is_alive(), "the run goes on"
    follower.join(10)
    (text,) = shown
    causes = [line.split(": ")[1].split()[0].strip(",") for line in text.splitlines()]
    assert causes == ["start", "death", "join", "resume", "fenced"]
    assert "step 60: fenced of worker-0, 3 -> 2 workers, 3.00 s down, 0 steps lost" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_a_death_is_told_as_it_happens_and_once(tmp_path: Path, terminal: bool) -> None:
    record = RunRecord(tmp_path)
    record.log_event(EVENTS[0])
    heard: list[Progress] = []
    watch = Watch(record, small_spec(Path("images.npz")), heard.append)
    watch.tick()
    assert heard == [], "what came before is not told again"
    record.log_event(EVENTS[1])
    watch.tick()
    record.log(step=41, loss=0.5, workers=1, step_seconds=0.1)
    record.log(step=41, failed_save="the checkpoint of step 41 is not saved: no room")
    watch.tick()
    assert [(news.events, news.workers) for news in heard] == [
        (("step 40: death of worker-1, 2 -> 1 workers, 0.31 s down, 0 steps lost",), 1),
        ((), 1),
    ]
    console = Console(force_terminal=terminal, width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file, progress(console) as listen:
        for news in heard:
            listen(news)
    text = console.export_text()
    assert text.count("step 40: death of worker-1") == 1
    assert text.count("warning: the checkpoint of step 41 is not saved: no room") == 1


# Resize


def test_a_request_to_resize_is_taken_once_and_the_last_one_counts(tmp_path: Path) -> None:
    record, limits = RunRecord(tmp_path), (1, 12)
    assert record.resize_requested(limits) is None
    record.request_resize(3, limits)
    RunRecord(tmp_path).request_resize(12, limits)
    assert [record.resize_requested(limits), record.resize_requested(limits)] == [12, None]
    record.request_resize(4, limits)
    assert [record.resize_requested(limits), record.resize_requested(limits)] == [4, None]


def test_the_next_attempt_knows_what_was_asked_of_the_last_one_unless_the_spec_says_otherwise(tmp_path: Path) -> None:
    RunRecord(tmp_path).request_resize(3, (1, 4))
    RunRecord(tmp_path).clear_requests()
    assert RunRecord(tmp_path).resize_requested((1, 4)) == 3
    assert RunRecord(tmp_path).resize_requested((1, 8)) is None


def test_a_run_is_not_resized_oftener_than_its_spec_allows(recorded: RunRecord, home: Path) -> None:
    document = yaml.safe_load((recorded.folder / "spec.yaml").read_text())
    document["parallel"]["tolerate"] = {"resizes_per_hour": 2}
    (recorded.folder / "spec.yaml").write_text(yaml.safe_dump(document))
    with held_by_another_process(home / "runs" / ".small.lease"):
        raydml.resize("small", 2)
        raydml.resize("small", 3)
        with pytest.raises(RunError, match=r"^2 requests .*resizes_per_hour is 2: ask again in \d+ s, or"):
            raydml.resize("small", 4)
        assert recorded.resize_requested((2, 8)) == 3
        late = [request | {"time": request["time"] - 3600.0} for request in recorded.resizes()]
        (recorded.folder / "resizes.jsonl").write_text("".join(json.dumps(request) + "\n" for request in late))
        raydml.resize("small", 4)


def test_a_run_that_trains_is_asked(recorded: RunRecord, home: Path) -> None:
    with held_by_another_process(home / "runs" / ".small.lease"):
        assert raydml.resize("small", 2) == {"run": "small", "workers": 2, "before": 3}
        assert recorded.resize_requested((2, 8)) == 2
        result = call("resize", "small", 8, "--json")
        assert json.loads(result.stdout) == {"run": "small", "workers": 8, "before": 3}
        assert recorded.resize_requested((2, 8)) == 8
        assert "run small: asked for 4 workers, 3 now" in call("resize", "small", 4).stdout


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        (1, r"run small cannot have 1 workers: parallel\.workers of its spec allows 2 to 12"),
        (13, r"13 workers are rounded down to 8"),
        (9, r"cannot have 9 workers: 9 workers are rounded down to 8: .*virtual_workers = 8 slices"),
    ],
)
def test_a_number_that_the_run_cannot_have_is_refused(
    recorded: RunRecord, home: Path, workers: int, message: str
) -> None:
    with held_by_another_process(home / "runs" / ".small.lease"), pytest.raises(SpecError, match=message):
        raydml.resize("small", workers)
    assert recorded.resizes() == []
    assert call("resize", "small", workers).exit_code == 2


def test_a_run_that_nobody_trains_is_not_asked(recorded: RunRecord, home: Path) -> None:
    with pytest.raises(RunError, match="run small is not training: it is left by a driver that died"):
        raydml.resize("small", 3)
    with held_by_another_process(home / "runs" / ".small.lease"):
        recorded.change(trained=True)
        with pytest.raises(RunError, match="it is trained already"):
            raydml.resize("small", 3)
        recorded.change(trained=False, state="interrupted")
        with pytest.raises(RunError, match=r"it is interrupted; set parallel.workers when it is started"):
            raydml.resize("small", 3)
    with pytest.raises(RunError, match="there is no run other"):
        raydml.resize("other", 3)
    assert call("resize", "small", 3).exit_code == 1
    assert recorded.resizes() == []


# World sizes


def test_data_parallel_uses_any_number_up_to_the_slices_and_says_why_no_more() -> None:
    spec = small_spec(Path("images.npz"), parallel={"workers": {"min": 3, "max": 20}})
    assert world_sizes(spec) == [3, 4, 5, 6, 7, 8]
    assert [fit(spec, workers).workers for workers in (1, 8, 9, 20)] == [1, 8, 8, 8]
    assert fit(spec, 8).reason is None
    reason = fit(spec, 9).reason
    assert reason is not None and "9 workers are rounded down to 8" in reason and "virtual_workers = 8" in reason


def test_more_workers_at_least_than_slices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"workers\.min = 9 is more than batch\.virtual_workers = 8.*lower min"):
        small_spec(Path("images.npz"), parallel={"workers": 9})


def test_what_a_run_tolerates_and_how_slices_are_dealt_does_not_stand_in_the_digest() -> None:
    plain = small_spec(Path("images.npz"))
    other = {
        "balance": "measured",
        "patience": 30,
        "tolerate": {
            "failures_per_hour": 0,
            "preemptions_per_hour": 9,
            "resizes_per_hour": 1,
            "poison": 2,
            "failed_saves": 0,
        },
    }
    assert small_spec(Path("images.npz"), parallel=other).digest() == plain.digest()
    assert small_spec(Path("images.npz"), parallel={"numerics": "fast"}).digest() != plain.digest()


@pytest.mark.parametrize(
    "parallel",
    [{"patience": 0.5}, {"balance": "fast"}, {"tolerate": {"poison": 0}}, {"tolerate": {"failures_per_hour": -1}}],
)
def test_limits_out_of_bounds_are_refused(parallel: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="parallel"):
        small_spec(Path("images.npz"), parallel=parallel)


# The lease


def drive_with_a_child(folder: Path, pipe: Connection) -> None:
    """Hold a run's lease beside a child process that outlives the driver."""
    with runs.owned(folder, again=False):
        child = subprocess.Popen(["sleep", "60"])
        pipe.send(child.pid)
        signal.pause()


def test_a_killed_driver_holds_no_lease_though_its_children_live(home: Path) -> None:
    folder = home / "runs" / "small"
    assert not driven(folder)
    ours, theirs = multiprocessing.Pipe()
    driver = multiprocessing.get_context("fork").Process(target=drive_with_a_child, args=(folder, theirs))
    driver.start()
    assert ours.poll(10)
    child = ours.recv()
    try:
        assert driven(folder)
        with pytest.raises(RunExists, match="being trained by another process"), runs.owned(folder, again=False):
            pass
        driver.kill()
        driver.join()
        os.kill(child, 0)  # it lives
        assert not driven(folder)
        with runs.owned(folder, again=False):
            assert driven(folder)
    finally:
        os.kill(child, signal.SIGKILL)


# Ctrl-C


def test_ctrl_c_waits_until_the_workers_have_stopped(images: Path, tmp_path: Path) -> None:
    record = RunRecord(tmp_path)

    class Stopping:
        """A driver whose workers take three more turns for their last checkpoint."""

        over = False
        turns = 0

        def tick(self) -> None:
            self.turns += record.stop_requested()
            self.over = self.turns == 3
            if not record.stop_requested():
                os.kill(os.getpid(), signal.SIGINT)

    stopping = Stopping()
    run._drive(stopping, record, Watch(record, job(images), None))  # type: ignore[arg-type]
    assert stopping.over


# Resuming, with the one worker in this process


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Everything but Ray is the run's own; `stop` is the step at which the driver is interrupted."""
    plan = {"stop": 0}

    @contextmanager
    def cluster(*_: object) -> Iterator[Placement]:
        yield Placement(1, False, {}, 1, 1)

    class Here:
        """Drives a run by training it in this process."""

        over = True

        def __init__(self, job: Job, placed: Placement, items: object, note: str, lost: int) -> None:
            self.job, self.note, self.lost = job, note, lost

        def __enter__(self) -> Here:
            job = self.job
            plan["most"] = job.spec.parallel.workers.max
            worker = Worker(job, Group(0, 1, job.spec.batch.virtual_workers), torch.device("cpu"))
            log, cause = worker.record.log, "start" if job.resume is None else "resume"
            worker.record.log_event(Event(1.0, 1, job.resume or 0, cause, 0, 1, lost=self.lost), self.note)
            Checkpoints(job.folder / "checkpoints", 2).set_aside_after(job.resume or 0)

            def log_and_die(**values: Any) -> None:
                log(**values)
                if values["step"] == plan["stop"]:
                    raise KeyboardInterrupt

            worker.record.log = log_and_die  # type: ignore[method-assign]
            self.interrupted = worker.run() == "interrupted"
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing was started."""

        def check(self) -> None:
            """An error would have been raised already."""

    monkeypatch.setattr(placement, "cluster", cluster)
    monkeypatch.setattr(driver, "Driver", Here)
    return plan


def job(images: Path, **changes: Any) -> JobSpec:
    return small_spec(images, train={"steps": 9, "evaluate_every": 3, "checkpoint_every": 2}, **changes)


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before_and_says_so(
    images: Path, home: Path, without_ray: dict[str, int]
) -> None:
    wanted = train(job(images, name="undisturbed"))
    assert wanted.events[0]["cause"] == "start" and len(wanted.events) == 1
    without_ray["stop"] = 7
    with pytest.raises(KeyboardInterrupt):
        train(job(images))
    folder = home / "runs" / "small"
    orphan = folder / "checkpoints" / ".tmp-orphan"
    orphan.mkdir()
    newest = folder / "checkpoints" / "step-00000006"
    os.truncate(newest / "state.safetensors", 50)
    without_ray["stop"] = 0
    resumed = train(job(images))
    assert resumed.facts["state_sha256"] == wanted.facts["state_sha256"] and resumed.sha256 == wanted.sha256
    start, resume = resumed.events
    assert (start["cause"], resume["cause"], resume["step"], resume["after"]) == ("start", "resume", 4, 1)
    assert (resume["lost"], resume["samples_lost"]) == (3, 3 * 32), "steps 5 to 7 were logged and are taken again"
    assert resume["note"].startswith(f"passed over: {newest / 'state.safetensors'} is damaged")
    assert (newest.with_name("damaged-00000006") / "state.safetensors").stat().st_size == 50
    assert not orphan.exists()
    assert resumed.world_size_history == [{"step": 0, "workers": 1}]
    assert "| workers | 1 from step 0; 1 resume; 3 steps taken again |" in (resumed.model / "README.md").read_text()
    assert resumed.summary()["events"] == resumed.events
    with pytest.raises(RunExists, match="run small is finished"):
        train(job(images))


def test_a_run_without_any_whole_checkpoint_does_not_begin_anew_by_itself(
    images: Path, home: Path, without_ray: dict[str, int]
) -> None:
    without_ray["stop"] = 5
    with pytest.raises(KeyboardInterrupt):
        train(job(images))
    folder = home / "runs" / "small" / "checkpoints"
    damaged = sorted(folder.iterdir())
    for path in damaged:
        (path / "checkpoint.json").unlink()
    without_ray["stop"] = 0
    with pytest.raises(CheckpointError, match=r"has no whole checkpoint: .*step-00000004.*Restore one, or --again"):
        train(job(images))
    assert sorted(folder.iterdir()) == damaged
    assert train(job(images), again=True).state == "succeeded"


def test_workers_beyond_the_slices_are_never_asked_for(images: Path, home: Path, without_ray: dict[str, int]) -> None:
    train(job(images, parallel={"workers": {"min": 1, "max": 30}}))
    assert without_ray["most"] == 8
