"""Spec files: values, overrides, and every mistake with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raydml.errors import SpecError
from raydml.spec import JobSpec
from raydml.specfile import load_spec, parse_spec, read_spec

GOOD = """\
name: glyphs
seed: 7
data: {kind: glyphs}
batch:
  classes: 16
  samples: 4
loss:
  kind: triplet
  margin: 0.2
model:
  backbone:
    kind: small_cnn
    width: 16
"""


def write(folder: Path, text: str, name: str = "spec.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def mistakes(folder: Path, text: str, *overrides: str, name: str = "spec.yaml") -> list[str]:
    """The message's lines, with the folder removed."""
    with pytest.raises(SpecError) as caught:
        load_spec(write(folder, text, name), overrides)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def test_a_file_gives_the_values_written_in_it(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, GOOD))
    assert (spec.name, spec.seed, spec.batch.classes) == ("glyphs", 7, 16)
    assert spec.model.backbone.kind == "small_cnn"


def test_json_and_yaml_give_the_same_spec(tmp_path: Path) -> None:
    document = {"name": "a", "data": {"kind": "glyphs"}, "loss": {"kind": "triplet"}, "train": {"steps": 5}}
    as_json = load_spec(write(tmp_path, json.dumps(document, indent="\t"), "spec.json"))
    assert as_json == load_spec(write(tmp_path, json.dumps(document))) == parse_spec(document)


def test_every_mistake_is_named_at_once_with_its_line(tmp_path: Path) -> None:
    text = GOOD.replace("classes: 16", "classes: 1").replace("margin: 0.2", "marign: 0.2").replace("seed: 7", "seed: x")
    found = mistakes(tmp_path, text)
    assert [line.split(": ")[:2] for line in found] == [
        ["spec.yaml:2", "seed"],
        ["spec.yaml:5", "batch.classes"],
        ["spec.yaml:9", "loss.marign"],
    ]
    assert "got 'x'" in found[0]
    assert "greater than or equal to 2, got 1" in found[1]
    assert found[2].endswith("unknown key, did you mean margin?")


def test_a_mistake_inside_nested_choices_has_the_path_of_the_file(tmp_path: Path) -> None:
    assert mistakes(tmp_path, GOOD.replace("width: 16", "width: 3"))[0].startswith(
        "spec.yaml:13: model.backbone.width: "
    )
    assert mistakes(tmp_path, GOOD.replace("width: 16", "wdith: 16")) == [
        "spec.yaml:13: model.backbone.wdith: unknown key, did you mean width?"
    ]


def test_a_key_named_like_its_kind_is_found(tmp_path: Path) -> None:
    text = GOOD.replace("kind: triplet", "kind: margin").replace("margin: 0.2", "margin: many")
    assert mistakes(tmp_path, text)[0].startswith("spec.yaml:9: loss.margin: ")


def test_an_unknown_kind_suggests_the_nearest(tmp_path: Path) -> None:
    (found,) = mistakes(tmp_path, GOOD.replace("kind: small_cnn", "kind: smal_cnn"))
    assert found == "spec.yaml:11: model.backbone: unknown kind 'smal_cnn', did you mean small_cnn?"


def test_a_key_like_no_other_lists_the_known_ones(tmp_path: Path) -> None:
    (found,) = mistakes(tmp_path, GOOD + "zzz: 1\n")
    assert found.startswith("spec.yaml:14: zzz: unknown key; known: name, seed, data, ")


def test_a_missing_key_is_named_at_its_parent(tmp_path: Path) -> None:
    assert mistakes(tmp_path, GOOD.replace("data: {kind: glyphs}", "data: {kind: image_folder}")) == [
        "spec.yaml:3: data.path: is missing"
    ]


def test_numbers_that_do_not_fit_together_are_shown(tmp_path: Path) -> None:
    (found,) = mistakes(tmp_path, GOOD.replace("samples: 4", "samples: 4\n  virtual_workers: 7"))
    assert found.startswith("spec.yaml:4: batch: classes x samples = 16 x 4 = 64 rows cannot be cut into 7")


def test_a_key_written_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    assert mistakes(tmp_path, GOOD + "seed: 8\n") == ["spec.yaml:14: seed: written twice, in lines 2 and 14"]
    nested = '{"name": "a",\n "data": {"kind": "glyphs", \n"kind": "glyphs"}, "loss": {"kind": "triplet"}}'
    assert mistakes(tmp_path, nested, name="spec.json")[0].startswith("spec.json:3: data.kind: written twice")


def test_overrides_change_and_add_values(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    spec = load_spec(path, ["batch.classes=8", "train.optimizer={kind: sgd, lr: 1e-2}", "parallel.workers.max=2"])
    assert (spec.batch.classes, spec.train.optimizer.lr, spec.parallel.workers.max) == (8, 0.01, 2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.marign=0.3", "--set loss.marign=0.3: loss.marign: unknown key, did you mean margin?"),
        ("zzz.deep=1", "--set zzz.deep=1: zzz: unknown key"),
        ("name.part=1", "--set name.part=1: name is 'glyphs', which has no parts"),
        ("batch.classes=1", "--set batch.classes=1: batch.classes: Input should be greater than or equal to 2, got 1"),
        ("loss.margin", "--set loss.margin: write path=value"),
        ("loss.margin={", "--set loss.margin={: '{' is not a YAML value"),
    ],
)
def test_a_wrong_override_is_named_as_it_was_written(tmp_path: Path, override: str, message: str) -> None:
    assert mistakes(tmp_path, GOOD, override)[0].startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "spec.yaml:1: a spec is a mapping"),
        ("- name", "spec.yaml:1: a spec is a mapping"),
        ("name: a\n  b: [", "spec.yaml:2: is not valid YAML"),
        ("name: !!python/name:os.system", "spec.yaml:1: is not valid YAML"),
        ("a: 1\n---\nb: 2\n", "spec.yaml:2: is not valid YAML"),
        ("[" * 5000, "spec.yaml: is nested too deeply"),
    ],
)
def test_a_file_that_is_no_spec_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    assert mistakes(tmp_path, text)[0].startswith(message)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="No such file"):
        load_spec(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="not UTF-8"):
        load_spec(tmp_path / "binary.yaml")


def test_a_mapping_is_checked_like_a_file_and_a_spec_passes() -> None:
    with pytest.raises(SpecError, match=r"^data\.path: is missing\nlos: unknown key, did you mean loss\?\n?") as caught:
        parse_spec({"name": "a", "data": {"kind": "arrays"}, "los": {}, "loss": {"kind": "triplet"}})
    assert caught.value.data["problems"][0] == {"where": "", "path": "data.path", "problem": "is missing", "line": None}
    spec = JobSpec.model_validate({"name": "a", "data": {"kind": "glyphs"}, "loss": {"kind": "triplet"}})
    assert parse_spec(spec) is spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nloss: {kind: triplet, margn: 1}\n", "spec:2: loss.margn: unknown key, did you mean margin?"),
        ('{"name": "a",\n "loss": 3}', "spec:2: loss: "),
        ("a: &all [1, 2]\nb: [*all, *all]", "spec:2: is not valid YAML: aliases are not taken"),
        ("name: 2020-99-99", "spec: holds a value that cannot be read: month must be in 1..12"),
        ("seed: 1" + "0" * 5000, "spec: holds a value that cannot be read: Exceeds the limit"),
        ("a: " + "[" * 30_000, "spec:1: is not valid YAML: more than 32 levels are not taken"),
        ("name: \x00", "spec: is not valid YAML: unacceptable character"),
        ("[1]", "spec:1: a spec is a mapping"),
        ("", "spec:1: a spec is a mapping"),
    ],
)
def test_a_text_of_a_stranger_is_refused_with_the_line(text: str, message: str) -> None:
    with pytest.raises(SpecError) as refused:
        read_spec(text)
    assert message in str(refused.value)


def test_a_spec_inside_of_a_document_keeps_the_lines_of_the_document() -> None:
    spec = {"name": "a", "data": {"kind": "glyphs"}, "loss": {"kind": "triplet"}}
    assert read_spec(json.dumps({"spec": spec}), key="spec") == read_spec(json.dumps(spec)) == parse_spec(spec)
    text = '{"priority": 1,\n "spec": {"name": "a",\n  "data": {"kind": "glyphs"},\n  "loss": {"kind": "tripet"}}}'
    with pytest.raises(SpecError) as refused:
        read_spec(text, "body", "spec")
    assert str(refused.value) == "body:4: loss: unknown kind 'tripet', did you mean triplet?"
