"""A study on Ray whose trials take no time, as a process of its own that may be killed at any moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from raydml.files import append_line, write_json
from raydml.runs import held
from raydml.spec import JobSpec
from raydml.training.fleet.placement import cluster
from raydml.tuning.record import StudyRecord
from raydml.tuning.study import search
from raydml.tuning.trials import check_space
from tests.unit.studies import no_checkpoint, study_spec


def score(document: dict[str, Any], step: int) -> float:
    return float(1 - abs(document["loss"]["margin"] - 0.3) - 0.5 / step)


class Objective:
    """Scores a spec at every tenth step, a little later each time; every evaluation is a line in a file."""

    def __call__(self, folder: Path, until: int) -> None:
        with held(folder, "trial", 120):
            document = yaml.safe_load((folder / "spec.yaml").read_text())
            path = folder / "run.json"
            facts = json.loads(path.read_text())
            step, evaluations = facts.get("step", 0), facts.get("evaluations", {})
            while step < until:
                step += 10
                time.sleep(0.05)
                evaluations[str(step)] = {"map_at_r": score(document, step)}
                state = "trained" if step == document["train"]["steps"] else "paused"
                append_line(folder.parent.parent / "evaluations.jsonl", json.dumps([folder.name, step]), durable=True)
                write_json(path, facts | {"state": state, "step": step, "evaluations": evaluations})


def spec_of(tune: dict[str, Any]) -> JobSpec:
    return study_spec(tune, parallel={"workers": {"min": 1, "max": 1, "cpus": 1}})


def main() -> None:
    folder, tune = Path(sys.argv[1]), json.loads(sys.argv[2])
    spec, record = spec_of(tune), StudyRecord(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    record.change(state="running")
    with cluster(spec, None):
        search(spec, record, Objective(), check_space(spec), time.time(), copy=no_checkpoint)
    record.change(state="succeeded")


def start(folder: Path, tune: dict[str, Any]) -> subprocess.Popen[str]:
    program = "from tests.ray.studies import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, str(folder), json.dumps(tune)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def evaluated(folder: Path) -> Counter[tuple[str, int]]:
    """How often each step of each trial was evaluated."""
    path = folder / "evaluations.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return Counter((name, step) for name, step in map(json.loads, lines))
