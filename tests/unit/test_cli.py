"""The command line: answers, exit codes, and what goes to which stream."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

import raydml
from raydml import run
from raydml.cli import app
from raydml.cli.progress import progress
from raydml.errors import DataError, Interrupted, RaydmlError, RunExists
from raydml.progress import Progress
from raydml.search import Collection

SPEC = "name: small\ndata: {kind: glyphs}\nloss: {kind: triplet, margin: 0.2}\n"
SUMMARY = {
    "run": "small",
    "state": "succeeded",
    "metrics": {"precision_at_1": 0.9, "map_at_r": 0.8},
    "intervals": {"precision_at_1": [0.87, 0.93], "map_at_r": [0.71, 0.89]},
    "baseline": {"precision_at_1": 0.5, "map_at_r": 0.3},
    "model": "/somewhere/model",
    "collection": None,
    "sha256": "ab" * 32,
    "world_size_history": [{"step": 0, "workers": 2}],
    "events": [
        {"step": 0, "cause": "start", "before": 0, "after": 2, "lost": 0},
        {"step": 4, "cause": "death", "before": 2, "after": 1, "lost": 0},
    ],
    "exactness": "bitwise",
}


@dataclass
class FinishedRun:
    """Stands for `raydml.runs.Run`."""

    def summary(self) -> dict[str, Any]:
        return SUMMARY


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six classes of four small pictures each, with split folders."""
    random = np.random.default_rng(0)
    for split, classes in {"train": "abcd", "validation": "e", "test": "fg"}.items():
        for name in classes:
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.fromarray(random.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "pictures"


def test_version_is_printed() -> None:
    assert call("--version").stdout == f"raydml {raydml.__version__}\n"


def test_validate_accepts_a_good_spec_and_its_overrides(spec: Path) -> None:
    result = call("validate", spec, "--set", "parallel.numerics=fast", "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert (document["valid"], document["exactness"]) == (True, "exact")


def test_validate_names_every_mistake_and_ends_with_two(spec: Path) -> None:
    spec.write_text(SPEC.replace("margin", "marign") + "train: {steps: 0}\n")
    result = call("validate", spec)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{spec}:3: loss.marign: unknown key, did you mean margin?" in result.stderr
    assert f"{spec}:4: train.steps: " in result.stderr
    assert "Traceback" not in result.stderr


def test_a_mistake_is_one_json_document_too(spec: Path) -> None:
    result = call("validate", spec, "--set", "train.steps=0", "--json")
    error = json.loads(result.stdout)["error"]
    assert (result.exit_code, error["kind"], error["problems"][0]["path"]) == (2, "SpecError", "train.steps")


def test_wrong_usage_ends_with_two(spec: Path) -> None:
    for arguments in (
        ["validate"],
        ["train", spec, "--nonsense"],
        ["search", "faces"],
        ["search", "f", "--id", "a", "-k", 0],
    ):
        assert call(*arguments).exit_code == 2, arguments
    assert call("search", "faces", "--id", "a", "--filter", "label").exit_code == 2


def test_schema_is_the_json_schema_of_a_spec() -> None:
    assert set(json.loads(call("schema").stdout)["properties"]) == {*raydml.JobSpec.model_fields}


def test_train_hands_everything_over_and_answers_with_the_summary(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def train(loaded: raydml.JobSpec, **options: Any) -> FinishedRun:
        seen.update(options, margin=loaded.loss.margin)  # type: ignore[union-attr]
        options["listen"](Progress("training", 3, 10, 0.5, {"map_at_r": 0.25}, 2, 900.0, 65.0))
        print("a library talks")
        return FinishedRun()

    monkeypatch.setattr(run, "train", train)
    result = call("train", spec, "--set", "loss.margin=0.3", "--again", "--address", "host:1", "--json")
    assert json.loads(result.stdout) == SUMMARY
    assert (seen["margin"], seen["again"], seen["address"]) == (0.3, True, "host:1")
    assert "training 3/10  loss 0.5000  MAP@R 0.250  2 workers  900 images/s  1:05 left" in result.stderr
    assert "a library talks" in result.stderr
    shown = call("train", spec).stdout
    assert "MAP@R" in shown and "+0.500" in shown and "2 from step 0, 1 from step 4; 1 death" in shown


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("no images"), 2),
        (RunExists("run small is finished"), 1),
        (Interrupted("stopped after step 7"), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_is_one_message_and_its_exit_code(
    spec: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def train(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(run, "train", train)
    result = call("train", spec, "--json")
    assert result.exit_code == code
    assert str(error) in result.stderr and "Traceback" not in result.stderr
    assert json.loads(result.stdout)["error"]["message"] == (
        str(error) if isinstance(error, RaydmlError) else "interrupted"
    )


def test_evaluate_shows_the_metrics_beside_raw_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {part: SUMMARY[part] for part in ("metrics", "intervals", "baseline")}
    monkeypatch.setattr(run, "evaluate", lambda name, metric: {"run": name, **measured})
    shown = call("evaluate", "small").stdout
    assert all(words in shown for words in ("0.800", "0.300", "+0.500", "0.710 - 0.890"))
    assert json.loads(call("evaluate", "small", "--json").stdout)["run"] == "small"


def test_search_finds_by_vector_and_by_id_within_a_filter(home: Path, tmp_path: Path) -> None:
    collection = Collection.open(home / "collections" / "faces", dimension=2, metric="cosine")
    payloads = [{"label": "7"}, {"label": "7"}, {"label": "b"}]
    collection.upsert(ids=["one", "two", "three"], vectors=[[1, 0], [0.9, 0.1], [0, 1]], payloads=payloads)
    np.save(tmp_path / "v.npy", np.array([0.0, 1.0], np.float32))
    (by_vector,) = json.loads(call("search", "faces", "--vector", tmp_path / "v.npy", "-k", 2, "--json").stdout)[
        "results"
    ]
    assert [hit["id"] for hit in by_vector["hits"]] == ["three", "two"]
    document = json.loads(call("search", "faces", "--id", "three", "--filter", "label=7", "--json").stdout)
    assert [hit["id"] for hit in document["results"][0]["hits"]] == ["two", "one"]
    assert "label=b" in call("search", "faces", "--id", "one").stdout


def test_verify_tells_a_whole_collection_from_one_with_a_flipped_bit(home: Path) -> None:
    with Collection.open(home / "collections" / "c", 2) as collection:
        collection.upsert(["a", "b"], [[1, 0], [0, 1]])
        collection.seal()
    assert json.loads(call("verify", "c", "--json").stdout) == {"collection": "c", "whole": True, "points": 2}
    (vectors,) = (home / "collections" / "c").rglob("vectors*")
    content = bytearray(vectors.read_bytes())
    content[-1] ^= 1
    vectors.chmod(0o600)
    vectors.write_bytes(content)
    damaged = call("verify", "c")
    assert damaged.exit_code == 1 and "SHA-256" in damaged.stderr and vectors.name in damaged.stderr


def test_search_refuses_what_is_no_vector_and_no_collection(tmp_path: Path, home: Path) -> None:
    Collection.open(home / "collections" / "faces", dimension=2, metric="cosine")
    (tmp_path / "v.npy").write_text("nothing")
    result = call("search", "faces", "--vector", tmp_path / "v.npy")
    assert result.exit_code == 2 and "v.npy is not a readable .npy file" in result.stderr
    assert call("search", "nobody", "--id", "x").exit_code == 2


def test_plan_shows_data_slices_and_memory(spec: Path, pictures: Path) -> None:
    text = f"name: p\ndata: {{kind: image_folder, path: {pictures}, image_size: 8}}\nloss: {{kind: triplet}}\n"
    spec.write_text(text + "batch: {classes: 4, samples: 4}\nparallel: {workers: {min: 1, max: 3}}\n")
    shown = call("plan", spec).stdout
    assert "0-1  2-4  5-7" in shown and "16 images in 8 slices, 1 a pass" in shown
    document = json.loads(call("plan", spec, "--json").stdout)
    assert document["splits"]["train"] == {"classes": 4, "images": 16}
    assert "classes by frequency" in call("plan", spec, "--set", "batch.sampling.kind=frequency").stdout
    impossible = call("plan", spec, "--set", "batch.classes=8", "--json")
    assert impossible.exit_code == 2
    assert "batch.classes = 8 different classes" in json.loads(impossible.stdout)["batches"]["problem"]


def test_a_terminal_sees_a_live_bar() -> None:
    console = Console(force_terminal=True, width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file, progress(console) as listen:
        listen(Progress("training", 5, 10, 0.25, {}, 1, 0.0, None))
    assert "5/10" in console.export_text()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_broken_rule_is_told_at_once_and_once(terminal: bool) -> None:
    console = Console(force_terminal=terminal, width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file, progress(console) as listen:
        listen(Progress("training", 5, 10, warnings=("step 5: collapse: [0.1]",)))
        listen(Progress("training", 6, 10))
    assert console.export_text().count("warning: step 5: collapse: [0.1]") == 1


def test_json_keeps_the_output_of_child_processes_off_stdout(tmp_path: Path) -> None:
    script = (
        "import os\nfrom raydml.cli.output import answering\n"
        "with answering(True) as answer:\n    os.system('echo noise'); print('noise'); answer({'a': 1}, '')\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(result.stdout) == {"a": 1}
    assert result.stderr.count("noise") == 2
