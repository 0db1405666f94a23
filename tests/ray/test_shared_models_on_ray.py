"""Strategies that share the model out, by the spec, on a real local Ray: trained, measured, exported, indexed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import raydml
from tests.distributed.harness import write_images
from tests.ray.commands import document

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("shared_ray"),
    pytest.mark.timeout(500),
    pytest.mark.filterwarnings("default"),
]

FORMS: dict[str, dict[str, Any]] = {
    "fsdp": {"strategy": "fsdp"},
    "pipeline": {"strategy": "pipeline", "mesh": {"pipeline": 2}},
}


def test_runs_that_share_the_model_out_end_with_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path)
    monkeypatch.chdir(tmp_path)
    runs = {}
    for name, form in FORMS.items():
        parallel = {"workers": {"min": 2, "max": 2, "cpus": 0.5}, "precision": "float64", **form}
        runs[name] = raydml.train(document(Path("images.npz"), name, parallel=parallel))
        run = runs[name]
        assert run.state == "succeeded" and run.exactness == "exact"
        assert run.world_size_history == [{"step": 0, "workers": 2}]
        assert run.collection.count() == run.metrics["queries"]
        assert raydml.evaluate(name)["metrics"] == pytest.approx(run.metrics, rel=1e-6)
    assert runs["fsdp"].metrics == pytest.approx(runs["pipeline"].metrics, rel=1e-6)
