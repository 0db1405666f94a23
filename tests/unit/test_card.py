"""The card of a model: true numbers, lines of code that run, the same bytes for the same run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from raydml import run
from raydml.models import load_model
from raydml.parallel import Group
from raydml.run import train
from raydml.runs import Run
from raydml.spec import JobSpec
from raydml.training.record import RunRecord
from raydml.training.worker import Job, run_worker
from tests.distributed.harness import small_spec
from tests.unit.test_texts import sentences, text_spec

SHORT = {"steps": 6, "evaluate_every": 3, "checkpoint_every": 3}


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The one worker runs in this process; everything before and after it is the run's own."""

    def here(job: Job, record: RunRecord, *given: Any) -> None:
        group = Group(0, 1, job.spec.batch.virtual_workers)
        record.change(attempt=run_worker(job, group, torch.device("cpu")))

    monkeypatch.setattr(run, "_train_on_ray", here)
    yield
    torch.use_deterministic_algorithms(False)


def card_of(trained: Run) -> str:
    return (trained.model / "README.md").read_text()


def run_code(card: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **names: Any) -> dict[str, Any]:
    """Executes the card's lines of Python in the model's folder, and gives what they defined."""
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(folder)
    exec(code, names)
    return names


def rows(card: str) -> dict[str, list[str]]:
    """The rows of all tables by their first cell."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in cells}


def test_the_card_tells_the_runs_own_numbers(images: Path, home: Path) -> None:
    spec = small_spec(
        images, train=SHORT, evaluate={"baseline": True}, watch={"every": 2, "rules": {"collapse": {"spread": 0.99}}}
    )
    trained = train(spec)
    found, facts = rows(card_of(trained)), trained.facts
    assert trained.baseline["map_at_r"] != trained.metrics["map_at_r"]
    for name in ("map_at_r", "precision_at_1", "recall_at_10"):
        assert found[name] == [f"{trained.baseline[name]:.4f}", f"{trained.metrics[name]:.4f}"]
    assert found["train"] == ["12", "72"] and found["test"] == found["validation"] == ["4", "24"]
    assert found["batch"] == ["8 classes x 4 = 32 in 8 slices"]
    assert found["steps"] == [f"6, exported after step {facts['exported_step']}"]
    assert found["weights"] == [f"`{trained.sha256}` (SHA-256)"] and found["exactness"] == ["bitwise"]
    assert yaml.safe_load(found["loss"][0].strip("`")) == {
        name: value for name, value in spec.loss.model_dump(mode="json").items() if value is not None
    }
    assert f"torch {torch.__version__}" in found["versions"][0]
    assert f"Kind: arrays. Fingerprint: `{facts['fingerprint']}`" in card_of(trained)
    assert "24 queries (0 without a positive are not counted), cosine" in card_of(trained)
    (warning,) = trained.warnings
    assert f"- step 2: {warning['message']}" in card_of(trained)
    assert trained.summary()["warnings"] == trained.warnings


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "manhattan"])
def test_the_cards_lines_of_code_compare_two_images(
    images: Path, home: Path, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    trained = train(small_spec(images, train=SHORT, evaluate={"baseline": False, "metric": metric}))
    names = run_code(card_of(trained), trained.model, monkeypatch)
    embeddings = load_model(trained.model).embed(names["inputs"])
    assert embeddings.shape == (2, 8)
    expected = {
        "cosine": ("similarity", lambda a, b: a @ b / np.sqrt((a @ a) * (b @ b))),
        "euclidean": ("distance", lambda a, b: np.sqrt(((a - b) ** 2).sum())),
        "manhattan": ("distance", lambda a, b: sum(abs(x - y) for x, y in zip(a, b, strict=True))),
    }
    name, compare = expected[metric]
    assert names[name] == pytest.approx(compare(*embeddings.astype(np.float64)), rel=1e-4)
    assert rows(card_of(trained))["map_at_r"][0] == "not measured"


def test_the_code_works_for_colours_vectors_and_ones_own_module(
    images: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    colours = train(small_spec(images, name="colours", train=SHORT, **{"data.grayscale": False}))
    assert run_code(card_of(colours), colours.model, monkeypatch)["inputs"].shape == (2, 8, 8, 3)
    labels = np.repeat(np.arange(20), 4)
    path = tmp_path / "vectors.npz"
    np.savez(path, inputs=np.random.default_rng(0).normal(size=(80, 5)), labels=labels)
    own = nn.Sequential(nn.Linear(5, 8), nn.Tanh())
    model = {"backbone": {"kind": "custom"}, "dimension": 8}
    spec = small_spec(path, name="own", train=SHORT, model=model)
    trained = train(spec, model=own)
    names = run_code(card_of(trained), trained.model, monkeypatch, module=own)
    assert names["inputs"].shape == (2, 5) and names["first"].shape == (8,)
    assert "arrays of shape (5,)" in card_of(trained)


def test_the_code_works_for_texts(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = train(text_spec(sentences(tmp_path), name="texts"))
    names = run_code(card_of(trained), trained.model, monkeypatch)
    assert names["inputs"] == ["a text", "another text"] and names["second"].shape == (8,)
    assert "takes texts and makes at most 40 hashed n-grams of each" in card_of(trained)


def test_the_same_run_writes_the_same_bytes(images: Path, home: Path) -> None:
    spec = small_spec(images, train=SHORT)
    first = card_of(train(spec))
    assert card_of(train(spec, again=True)) == first
    assert card_of(Run(home / "runs" / "small~1", home)) == first


def test_licence_and_words_are_those_of_the_spec_and_else_unknown(images: Path, home: Path) -> None:
    plain = card_of(train(small_spec(images, train=SHORT)))
    assert front(plain)["license"] == "unknown" and "Intended use" not in plain
    said = {"licence": "cc-by-4.0: mine", "description": "Small *pictures*.", "intended_use": "Tests alone."}
    card = card_of(train(small_spec(images, name="said", train=SHORT, **{"model.card": said})))
    assert front(card)["license"] == said["licence"]
    assert "\n\nSmall *pictures*.\n\n## Intended use\n\nTests alone.\n\n" in card


def front(card: str) -> dict[str, Any]:
    _, head, _ = card.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(head)
    return found


@pytest.mark.parametrize(
    "card", [{"licence": ""}, {"licence": "mit\napache"}, {"license": "mit"}, {"licence": "x" * 201}]
)
def test_a_card_that_is_none_is_refused(images: Path, card: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="card"):
        small_spec(images, **{"model.card": card})


def test_a_model_folder_with_a_card_loads_and_its_spec_is_kept(images: Path, home: Path) -> None:
    trained = train(small_spec(images, train=SHORT, **{"model.card": {"licence": "mit"}}))
    assert load_model(trained.model).digest == trained.sha256
    kept = JobSpec.model_validate(yaml.safe_load((trained.folder / "spec.yaml").read_text()))
    assert kept.model.card is not None and kept.model.card.licence == "mit"
