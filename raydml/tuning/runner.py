"""A planner and a way to train in; all pieces of work done by Ray Tune, as many at once as were admitted, out.

Ray Tune starts a process for each piece of work, keeps processes for the next, and starts one that died again. Which
work there is is the planner's, and stops are requests that a trial follows at its next step: nothing is killed, and no
room is left behind.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.search import Searcher

from raydml.errors import ResourceError, RunError
from raydml.files import write_bytes
from raydml.training.record import RunRecord
from raydml.tuning.admission import Need
from raydml.tuning.planner import Planner, Task

START_SECONDS = 30.0  # that processes which start together may differ by
DEATHS = 2  # of the processes of one piece of work, after which the trial has failed
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
ROOM_SECONDS = 180.0  # without one running process, though work waits; then the cluster has lost its room

Work = Callable[[Path, int], None]
"""(a trial's folder, the step to train to): do it, and say in run.json what came of it."""


def room_to_come(address: str | None) -> tuple[float, float] | None:
    """CPUs and GPUs of the local Ray that would be started; None where there is one, or an address of one."""
    if address is not None or ray.is_initialized():
        return None
    return float(os.cpu_count() or 1), float(torch.cuda.device_count())


def room() -> tuple[float, float]:
    """CPUs and GPUs of the cluster that is connected."""
    total = ray.cluster_resources()
    return float(total.get("CPU", 0)), float(total.get("GPU", 0))


def run(planner: Planner, work: Work, need: Need, turn: Callable[[], None]) -> None:
    """Until there is no work, or the study was stopped. `turn` is called a few times a second by the caller's thread.

    The first Ctrl-C asks the study to stop, a second one leaves at once. Raises what the planner raises, and
    ResourceError where the cluster has no room any more.
    """
    first = planner.next()
    if first == "done":
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(planner.concurrency)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it warns that trials logged nothing to Ray's own files
    scratch = planner.record.folder / "ray"
    shutil.rmtree(scratch, ignore_errors=True)
    failure: list[BaseException] = []

    def fit() -> None:
        try:
            _tuner(Questions(planner, first, Together(scratch / "processes")), work, need, scratch).fit()
        except BaseException as error:  # it reaches the caller below
            failure.append(error)

    thread = threading.Thread(target=fit, daemon=True, name="raydml-tune")  # in the main one it would take Ctrl-C
    thread.start()
    asked = False
    while thread.is_alive():
        try:
            thread.join(0.2)
            turn()
        except KeyboardInterrupt:
            if asked:
                raise
            asked = True
            planner.record.request_stop()
    shutil.rmtree(scratch, ignore_errors=True)
    if failure:
        raise failure[0]
    if not planner.done and not planner.over:
        raise RunError("Ray Tune ended before the study did: the same command goes on")


def _tuner(questions: Questions, work: Work, need: Need, scratch: Path) -> Any:
    together = questions.together

    def trainable(config: dict[str, Any]) -> None:
        together.arrive()
        work(Path(config["folder"]), config["until"])
        together.wait()
        tune.report({"until": config["until"]})

    resources = {"CPU": need.own} | ({"GPU": need.gpus} if need.gpus and not need.workers else {})
    return tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune.TuneConfig(search_alg=questions, num_samples=10**9, reuse_actors=True),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=DEATHS - 1),
            callbacks=[Watching(questions.planner)],
        ),
    )


@dataclass(frozen=True)
class Together:
    """The processes of a study, which start at the same time but take longer for it than a short piece of work.

    Ray Tune gives a trial that waits to whichever process is free, and drops the one that was still starting for it. So
    a process that has done its first piece waits for the others. `folder` is where all of them can see it.
    """

    folder: Path

    def expect(self, number: int) -> None:
        """So many pieces of work are handed out at once, each to a process of its own."""
        write_bytes(self.folder / "expected", str(number).encode())

    def arrive(self) -> None:
        """This process is there."""
        marks = self.folder / "there"
        marks.mkdir(parents=True, exist_ok=True)
        (marks / f"{socket.gethostname()}-{os.getpid()}").touch()

    def wait(self) -> None:
        """Until all that are expected were there; for START_SECONDS, once: the cluster may have lost their room."""
        end = time.monotonic() + START_SECONDS
        while len(list((self.folder / "there").iterdir())) < int((self.folder / "expected").read_text()):
            if time.monotonic() > end:
                self.expect(1)
            time.sleep(0.05)


class Questions(Searcher):  # type: ignore[misc]
    """What Ray Tune asks for work; `first` is what the planner has handed out already."""

    def __init__(self, planner: Planner, first: Task | str, together: Together) -> None:
        super().__init__()
        self.planner = planner
        self.together = together
        self._most = 0  # pieces of work that were out at once
        self._first: Task | str | None = first
        self._tasks: dict[str, Task] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A piece of work; None where it has to wait for others, FINISHED where there is none any more."""
        task = self._first or self.planner.next()
        self._first = None
        if isinstance(task, str):
            return None if task == "wait" else Searcher.FINISHED
        self._tasks[trial_id] = task
        if len(self._tasks) > self._most:
            self._most = len(self._tasks)
            self.together.expect(self._most)
        return {"folder": str(task.folder), "until": task.until}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The piece of work is over, or its process died too often."""
        task = self._tasks.pop(trial_id)
        self.planner.ended(task.trial, f"its process died {DEATHS} times before step {task.until}" if error else None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what is known is in the study's folder."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class Watching(tune.Callback):  # type: ignore[misc]
    """Passes a request to stop the study on to the trials that run, and looks whether any run."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._alive = time.monotonic()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called by Ray Tune several times a second. Raises ResourceError where nothing can run."""
        if self._planner.over:
            for name in self._planner.running:
                RunRecord(self._planner.record.trial_folder(name)).request_stop()
        if any(trial.status == "RUNNING" for trial in trials) or not self._planner.running:
            self._alive = time.monotonic()
        elif time.monotonic() > self._alive + ROOM_SECONDS:
            raise ResourceError(
                f"{len(self._planner.running)} trials wait for room, and for {ROOM_SECONDS:.0f} s none has run: the "
                f"cluster has lost nodes, or others hold them. The same command goes on when there is room"
            )
