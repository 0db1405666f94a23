"""`raydml train` and `raydml tune` as a user runs them: a process of its own, watched through the run's folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from raydml.training.record import read_lines


def document(path: Path, name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "seed": 3,
        "data": {"kind": "arrays", "path": str(path), "image_size": 8, "grayscale": True},
        "batch": {"classes": 8, "samples": 4, "virtual_workers": 8},
        "model": {"backbone": {"kind": "mlp", "hidden": [32], "dropout": 0.1}, "dimension": 8},
        "loss": {"kind": "multi_similarity"},
        "parallel": {"workers": {"min": 1, "max": 2, "cpus": 0.5}},
        "train": {"steps": 30, "evaluate_every": 10, "checkpoint_every": 10},
        "index": {"collection": name},
    } | changes


def command(spec: Path, home: Path, *options: str, verb: str = "train") -> subprocess.Popen[str]:
    program = "from raydml.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, verb, str(spec), "--json", *options],
        env={**os.environ, "RAYDML_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    path = folder / "metrics.jsonl"
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if path.exists() and any(line["step"] >= step for line in read_lines(path)[0]):
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached")
