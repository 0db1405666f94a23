"""The built wheel: whole, and enough for a fresh virtual environment to train, be tracked, search and serve."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("pyproject.toml", "README.md", "LICENSE", "raydml", "api")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves a folder behind where it builds."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in NEEDED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(out), str(copy), patience=600)
    (found,) = out.glob("raydml-*.whl")
    return found


def run(*command: str, patience: float, cwd: Path | None = None, **environment: str) -> str:
    """What a command prints on stdout."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=patience, cwd=cwd, env=clean | environment, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.timeout(700)
def test_the_wheel_holds_every_file_of_both_packages(wheel: Path) -> None:
    listed = run("git", "ls-files", "raydml", "api", patience=60, cwd=ROOT).split()
    held = set(zipfile.ZipFile(wheel).namelist())
    assert len(listed) > 300
    assert sorted(set(listed) - held) == []
    assert {"raydml/demo.yaml", "raydml/jobs/migrations/script.py.mako", "api/openapi.json"} <= held


STEPS = 2000  # of eight samples each


def spec(folder: Path) -> dict[str, Any]:
    """Eight classes of bright corners."""
    random = np.random.default_rng(0)
    labels = np.arange(96) // 12
    images = random.integers(0, 60, (96, 8, 8, 1), dtype=np.uint8)
    for row, label in enumerate(labels):
        images[row, label, :] += 150
    np.savez(folder / "images.npz", inputs=images, labels=labels)
    return {
        "name": "small",
        "data": {"kind": "arrays", "path": str(folder / "images.npz"), "image_size": 8, "grayscale": True},
        "batch": {"classes": 2, "samples": 4, "virtual_workers": 4},
        "model": {"backbone": {"kind": "mlp", "hidden": [16]}, "dimension": 8},
        "loss": {"kind": "multi_similarity"},
        "parallel": {"workers": {"min": 1, "max": 1}},
        "train": {"steps": STEPS, "evaluate_every": 0, "checkpoint_every": 10},
        "index": {"collection": "small"},
        "tracking": ["mlflow", "tensorboard"],
    }


# Run in the new environment: every tracked loss, as (samples, value), of each tracker, and how many runs there are.
TRACKED = """
import json, sys
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
client = MlflowClient(tracking_uri=f"sqlite:///{sys.argv[1]}/mlflow.db")
runs = [run for each in client.search_experiments() for run in client.search_runs([each.experiment_id])]
mlflow = [(each.step, each.value) for run in runs for each in client.get_metric_history(run.info.run_id, "loss")]
shown = EventAccumulator(f"{sys.argv[1]}/runs/small/tensorboard", size_guidance={"scalars": 0}).Reload()
board = [(each.step, each.value) for each in shown.Scalars("loss")]
states = [run.info.status for run in runs]
print(json.dumps({"runs": states, "mlflow": sorted(mlflow), "tensorboard": sorted(board)}))
"""


def interrupted(raydml: str, folder: Path, home: Path) -> int:
    """Train until it is well under way, and press Ctrl-C; how many steps were logged."""
    metrics, log = home / "runs" / "small" / "metrics.jsonl", folder / "train.log"
    environment = os.environ | {"RAYDML_HOME": str(home), "PYTHONPATH": ""}
    with log.open("w") as output:
        words = [raydml, "train", "spec.yaml", "--json"]
        with subprocess.Popen(words, stdout=output, stderr=output, cwd=folder, env=environment) as process:
            while not metrics.exists() or len(metrics.read_text().splitlines()) < 50:
                assert process.poll() is None, log.read_text()
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            assert process.wait(600) == 130, log.read_text()
    return len(metrics.read_text().splitlines())


def check_tracked(python: str, home: Path) -> None:
    """Both trackers have one run, with each step of the whole run once: what the run itself logged."""
    lines = [json.loads(line) for line in (home / "runs" / "small" / "metrics.jsonl").read_text().splitlines()]
    losses = [(line["step"] * 8, line["loss"]) for line in lines if "loss" in line]
    assert [samples for samples, _ in losses] == [step * 8 for step in range(1, STEPS + 1)]
    found = json.loads(run(python, "-c", TRACKED, str(home), patience=300, cwd=home))
    assert found["runs"] == ["FINISHED"]
    for tracker in ("mlflow", "tensorboard"):
        tracked = [(samples, pytest.approx(value, rel=1e-6)) for samples, value in found[tracker]]
        assert losses == tracked, tracker


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_fresh_environment_trains_resumes_is_tracked_searches_and_serves(wheel: Path, tmp_path: Path) -> None:
    environment, home = tmp_path / "env", tmp_path / "home"
    run(sys.executable, "-m", "venv", str(environment), patience=600)
    constraints = str(ROOT / "constraints.txt")
    run(str(environment / "bin/pip"), "install", "--quiet", "-c", constraints, f"{wheel}[tracking]", patience=2400)
    raydml = str(environment / "bin/raydml")
    where = run(
        str(environment / "bin/python"), "-c", "import raydml; print(raydml.__file__)", patience=100, cwd=tmp_path
    )
    assert Path(where.strip()).is_relative_to(environment), "not this repository"
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec(tmp_path)))
    settings = {"RAYDML_HOME": str(home)}
    assert interrupted(raydml, tmp_path, home) < STEPS
    trained = json.loads(run(raydml, "train", "spec.yaml", "--json", patience=600, cwd=tmp_path, **settings))
    assert trained["state"] == "succeeded" and "map_at_r" in trained["metrics"]
    check_tracked(str(environment / "bin/python"), home)
    vector = tmp_path / "query.npy"
    np.save(vector, np.ones(8, np.float32))
    words = ("search", "small", "--vector", str(vector), "-k", "3", "--json")
    found = json.loads(run(raydml, *words, patience=300, cwd=tmp_path, **settings))
    assert len(found["results"][0]["hits"]) == 3
    serve_and_search(raydml, home, tmp_path)


def serve_and_search(raydml: str, home: Path, folder: Path) -> None:
    """Two processes, so that what one needs of the other is installed, too."""
    log = folder / "server.log"
    words = [raydml, "serve", "--port", "0", "--workers", "2"]
    with (
        log.open("w") as output,
        subprocess.Popen(
            words, stderr=output, cwd=folder, env=os.environ | {"RAYDML_HOME": str(home), "PYTHONPATH": ""}
        ) as process,
    ):
        try:
            url = ""
            while not url or not answers(url):
                assert process.poll() is None, log.read_text()
                found = re.search(r"(http://\S+) serves", log.read_text())
                url = found[1] if found else ""
                time.sleep(0.2)
            body = {"vectors": [[1.0] * 8], "k": 3}
            answer = httpx2.post(f"{url}/v1/collections/small/search", json=body, timeout=100)
            assert answer.status_code == 200 and len(answer.json()["results"][0]) == 3, answer.text
            ready = httpx2.get(f"{url}/readyz?verbose", timeout=100).json()
            assert {check["name"] for check in ready["checks"]} >= {"database", "storage", "supervisor"}
        finally:
            process.terminate()
            process.wait(100)


def answers(url: str) -> bool:
    """Whether a server listens there."""
    try:
        return httpx2.get(f"{url}/livez", timeout=30).status_code == 200
    except httpx2.TransportError:
        return False
