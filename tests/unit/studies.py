"""Studies on objectives that take no time, in one process: the planner asks, and a function of the spec answers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from raydml.files import write_json
from raydml.spec import JobSpec
from raydml.specfile import parse_spec
from raydml.tuning.planner import Planner, Task
from raydml.tuning.record import StudyRecord

Score = Callable[[dict[str, Any], int], float]


def study_spec(tune: dict[str, Any], **changes: Any) -> JobSpec:
    """A spec whose trials take 90 steps and are looked at every tenth."""
    document: dict[str, Any] = {
        "name": "study",
        "seed": 3,
        "data": {"kind": "glyphs"},
        "loss": {"kind": "triplet", "margin": 0.2},
        "train": {"steps": 90, "evaluate_every": 10, "optimizer": {"kind": "adamw", "lr": 0.001}},
        "tune": {"space": {"loss.margin": {"uniform": [0.0, 1.0]}}} | tune,
    }
    return parse_spec(document | changes)


class Synthetic:
    """A trial whose score at a step is a function of its spec; it keeps its state as a real one does."""

    def __init__(self, score: Score, every: int = 10, on_step: Callable[[], None] = lambda: None) -> None:
        self.score, self.every, self.on_step = score, every, on_step

    def __call__(self, folder: Path, until: int) -> None:
        spec = yaml.safe_load((folder / "spec.yaml").read_text())
        path = folder / "run.json"
        facts = json.loads(path.read_text())
        step = facts.get("step", 0)
        evaluations = facts.get("evaluations", {})
        while step < until:
            step = min(step + self.every, until)
            self.on_step()
            evaluations[str(step)] = {"map_at_r": self.score(spec, step)}
            state = "trained" if step == spec["train"]["steps"] else "paused"
            facts |= {"state": state, "step": step, "evaluations": evaluations, "seconds": 0.01 * step}
            write_json(path, facts)


def no_checkpoint(parent: Path, child: Path, step: int, digest: str) -> None:
    """A synthetic trial has none."""


def drive(planner: Planner, work: Callable[[Path, int], None], at_once: int = 1, seed: int = 0) -> list[Task]:
    """Do all work; of pieces that would run at once, any may end first. What was done, in order."""
    order, running, done = random.Random(seed), [], []
    while True:
        task = planner.next()
        if isinstance(task, Task):
            running.append(task)
        if running and (not isinstance(task, Task) or len(running) == at_once):
            ended = running.pop(order.randrange(len(running)))
            work(ended.folder, ended.until)
            planner.ended(ended.trial)
            done.append(ended)
        elif task == "done":
            return done
        else:
            assert running, "the planner waits for nobody"


def new_study(folder: Path, spec: JobSpec, at_once: int = 1) -> Planner:
    record = StudyRecord(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    record.change(state="running")
    return Planner(spec, record, at_once, no_checkpoint)
