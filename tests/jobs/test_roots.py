"""What a spec that came from elsewhere may name: files under the roots, uploaded data sets, installed plug-ins."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydml.data import Preprocessing
from raydml.errors import SpecError
from raydml.jobs.roots import PLACES, confined
from raydml.losses import Objective, evaluate_objective
from raydml.models import load_model
from raydml.models.embedding import build_model
from raydml.models.exported import save_model
from raydml.plugins import installed, plugged
from raydml.run import located, plugged_in
from raydml.spec import CustomBackbone, ModelSpec
from raydml.specfile import parse_spec

PACKAGE = """
import torch
class Points:
    labels = ["a", "a", "b", "b"]
    def __len__(self): return 4
    def __getitem__(self, number): return torch.full((3,), float(number)), self.labels[number]
def tiny(): return torch.nn.Linear(3, 5)
def broken(): raise ValueError("no licence")
class Near(torch.nn.Module):
    def __init__(self, num_classes, dimension):
        super().__init__()
        self.places = torch.nn.Parameter(torch.ones(num_classes, dimension))
    def forward(self, embeddings, labels): return (embeddings - self.places[labels]).square().mean()
class Rows(torch.nn.Module):
    def __init__(self, num_classes, dimension): super().__init__()
    def forward(self, embeddings, labels): return embeddings.sum(1)
"""
ENTRIES = """
[raydml.plugins.datasets]
points = raydml_test_plugin:Points
[raydml.plugins.models]
tiny = raydml_test_plugin:tiny
broken = raydml_test_plugin:broken
[raydml.plugins.losses]
near = raydml_test_plugin:Near
rows = raydml_test_plugin:Rows
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package that registers plug-ins."""
    facts = tmp_path / "site" / "raydml_test_plugin-1.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: raydml-test-plugin\nVersion: 1\n")
    (facts / "entry_points.txt").write_text(ENTRIES)
    (tmp_path / "site" / "raydml_test_plugin.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield
    sys.modules.pop("raydml_test_plugin", None)


def nothing(identity: str) -> Path:
    raise SpecError(f"there is no data set {identity}")


def spec(path: str) -> dict[str, Any]:
    return {"name": "s", "data": {"kind": "image_folder", "path": path}, "loss": {"kind": "triplet"}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a folder in it, and links that lead out of it."""
    made = tmp_path / "root"
    (made / "pictures").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (made / "link").symlink_to(tmp_path / "outside")
    (made / "loop").symlink_to(made / "loop")
    return made


def test_paths_under_a_root_are_made_absolute_and_the_spec_given_stays_as_it_was(root: Path) -> None:
    for given in ("pictures", str(root / "pictures"), f"{root}/x/../pictures"):
        document = spec(given)
        assert confined(document, [root.parent / "none", root], nothing)["data"]["path"] == str(root / "pictures")
        assert document == spec(given)


@pytest.mark.parametrize(
    "path",
    ["../outside", "/etc/passwd", "link", "loop", "missing", "~/.ssh", "pictures\0", "http://a.example/x", "x" * 5000],
)
def test_a_path_that_is_elsewhere_is_refused_links_followed(root: Path, path: str) -> None:
    with pytest.raises(SpecError, match=r"data\.path: "):
        confined(spec(path), [root], nothing)


def test_an_uploaded_data_set_is_found_by_its_id_and_an_unknown_one_is_refused(root: Path) -> None:
    assert confined(spec("dataset:d1"), [], lambda identity: root / identity)["data"]["path"] == str(root / "d1")
    with pytest.raises(SpecError, match="there is no data set d1"):
        confined(spec("dataset:d1"), [root], nothing)


def test_every_place_where_a_run_reads_a_path_is_confined() -> None:
    document = {
        "name": "s",
        "data": {"kind": "manifest", "path": "t.csv", "text": {"kind": "tokenizer", "path": "tokens"}},
        "batch": {"sampling": {"kind": "hard_classes", "negatives": "hard.jsonl"}},
        "model": {"backbone": {"kind": "transformers", "path": "bert"}},
        "loss": {"kind": "triplet"},
    }
    before = parse_spec(document)
    changed = set(_changes(before.model_dump(mode="json"), located(before).model_dump(mode="json")))
    assert changed == set(PLACES)
    with pytest.raises(SpecError) as refused:
        confined(document, [], nothing)
    assert all(f"{'.'.join(place)}: " in str(refused.value) for place in PLACES)


def _changes(before: Any, after: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(before, dict):
        for key in before:
            yield from _changes(before[key], after[key], (*keys, key))
    elif before != after:
        yield keys


def test_custom_parts_name_installed_plug_ins_or_are_refused(package: None) -> None:
    custom = {"name": "s", "data": {"kind": "custom", "plugin": "points"}, "loss": {"kind": "triplet"}}
    custom["model"] = {"backbone": {"kind": "custom", "plugin": "tiny"}}
    assert confined(custom, [], nothing) == custom
    for wrong in (None, "Points", "raydml_test_plugin:Points", "os:system"):
        document = {**custom, "data": {"kind": "custom", "plugin": wrong}}
        with pytest.raises(SpecError, match=r"data: custom needs `plugin: NAME`.*there are points"):
            confined(document, [], nothing)
    with pytest.raises(SpecError, match="plugin"):
        parse_spec({**custom, "data": {"kind": "custom", "plugin": "os:system"}})


def test_plug_ins_are_made_anew_and_a_model_of_one_gets_the_seeds_weights(package: None) -> None:
    assert (installed("datasets"), installed("models")) == (["points"], ["broken", "tiny"])
    document = {"name": "s", "seed": 3, "data": {"kind": "custom", "plugin": "points"}, "loss": {"kind": "triplet"}}
    document["model"] = {"backbone": {"kind": "custom", "plugin": "tiny"}}
    parsed = parse_spec(document)
    made = [plugged_in(parsed, None, None) for _ in range(2)]
    assert made[0][1] is not made[1][1] and len(made[0][0]) == 4  # type: ignore[arg-type]
    assert torch.equal(made[0][1].weight, made[1][1].weight)  # type: ignore[union-attr]
    mine = torch.nn.Linear(3, 5)
    assert plugged_in(parsed, None, mine)[1] is mine
    with pytest.raises(SpecError, match="no package registers 'nothing'"):
        plugged("models", "nothing")
    with pytest.raises(SpecError, match=r"the plug-in broken .* cannot be made: no licence"):
        plugged("models", "broken")


def test_a_loss_of_a_plug_in_is_exact_and_has_weights_of_its_own(package: None) -> None:
    custom = {"name": "s", "data": {"kind": "glyphs"}, "loss": {"kind": "custom", "plugin": "near"}}
    assert confined(custom, [], nothing) == custom
    with pytest.raises(SpecError, match=r"loss: custom needs `plugin: NAME`.*there are near, rows"):
        confined({**custom, "loss": {"kind": "custom", "plugin": "os"}}, [], nothing)
    embeddings, labels = torch.tensor([[1.0, 3.0], [2.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1, 1])
    shape: dict[str, Any] = {"num_classes": 2, "dimension": 2, "seed": 0, "dtype": torch.float32}
    objective = Objective(parse_spec(custom).loss, **shape)
    found = evaluate_objective(objective, embeddings, labels, 1, 0)
    assert float(found.loss) == pytest.approx((0 + 4 + 1 + 0 + 0 + 1) / 6)
    assert [name for name, _ in objective.named_parameters()] == ["term.loss.places"]
    assert torch.allclose(found.cotangents, 2 * (embeddings - 1) / 6)
    rows = Objective(parse_spec({**custom, "loss": {"kind": "custom", "plugin": "rows"}}).loss, **shape)
    with pytest.raises(SpecError, match=r"rows gives \(3,\): a loss is one number"):
        evaluate_objective(rows, embeddings, labels, 1, 0)


def test_a_model_of_a_plug_in_is_loaded_without_being_handed_over(package: None, tmp_path: Path) -> None:
    described = ModelSpec(backbone=CustomBackbone(plugin="tiny"), dimension=5)
    model = build_model(described, (3,), seed=0, custom=plugged("models", "tiny"))
    save_model(tmp_path / "model", model, described, (3,), Preprocessing("vector", (3,)))
    inputs = [np.ones(3, np.float32)]
    with torch.no_grad():
        expected = model.eval()(torch.ones(1, 3)).numpy()
    assert np.array_equal(load_model(tmp_path / "model").embed(inputs), expected)
