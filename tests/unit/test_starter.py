"""raydml init: what it finds in folders, tables and arrays, what it chooses, and that the spec stands every check."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from raydml.cli import app
from raydml.data import open_dataset
from raydml.data.survey import survey
from raydml.errors import DataError, SpecError
from raydml.plan import plan
from raydml.spec import JobSpec
from raydml.specfile import load_spec
from raydml.starter import data_of, write_spec
from raydml.starter.choices import choose


def picture(path: Path, seed: int, size: tuple[int, int] = (40, 30), grey: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    values = np.random.default_rng(seed).integers(0, 256, (height, width) if grey else (height, width, 3))
    Image.fromarray(values.astype(np.uint8)).save(path)


def class_folders(root: Path, classes: int = 12, each: int = 5, **options: Any) -> Path:
    for number in range(classes):
        for item in range(each):
            picture(root / f"class{number}" / f"{item}.png", 100 * number + item, **options)
    return root


def written(path: Path | None, folder: Path) -> tuple[JobSpec, str]:
    """The spec for the data at a path, having been planned with its data too."""
    made = write_spec(data_of(path), folder / "spec.yaml", folder / "home")
    spec = load_spec(made.path)
    planned = plan(spec, open_dataset(spec.data, folder / "home"))
    assert planned.problem is None
    return spec, made.path.read_text()


def test_class_folders_give_a_spec_that_fits_them(tmp_path: Path) -> None:
    spec, text = written(class_folders(tmp_path / "my pictures!"), tmp_path)
    assert (spec.name, spec.data.kind) == ("my-pictures", "image_folder")
    assert (spec.data.image_size, spec.data.grayscale) == (32, False)  # type: ignore[union-attr]
    training = open_dataset(spec.data, tmp_path).num_training_classes
    assert spec.batch.classes <= training < 2 * spec.batch.classes
    assert spec.batch.samples == 4
    assert "pictures have 40 to 40 pixels, usually 40" in text
    assert "a class usually has 5" in text


@pytest.mark.parametrize(("side", "expected"), [(20, 32), (41, 64), (100, 96), (121, 128), (900, 128)])
def test_the_size_of_pictures_is_what_is_usual_up_to_a_limit(tmp_path: Path, side: int, expected: int) -> None:
    root = class_folders(tmp_path / "pictures", classes=4, each=2, size=(side, side // 2), grey=True)
    spec, _ = written(root, tmp_path)
    assert (spec.data.image_size, spec.data.grayscale) == (expected, True)  # type: ignore[union-attr]


def test_items_that_cannot_be_read_are_counted_in_the_spec(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pictures", classes=6, each=3)
    (root / "class2" / "1.png").write_text("no picture")
    spec, text = written(root, tmp_path)
    assert spec.data.on_bad_item == "skip"
    assert "1 of 18 cannot be read, such as" in text


def test_a_manifest_of_texts_gives_a_bag_of_enough_ngrams(tmp_path: Path) -> None:
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        table.writerows([f"word {number} of class {number // 4}", number // 4] for number in range(48))
    spec, _ = written(tmp_path / "texts.csv", tmp_path)
    assert spec.model.backbone.kind == "ngram_bag"
    most = max(survey(data_of(tmp_path / "texts.csv"), tmp_path).lengths)
    assert spec.data.text.length % 32 == 0 and most <= spec.data.text.length < most + 32  # type: ignore[union-attr]


@pytest.mark.parametrize("as_folder", [False, True])
def test_arrays_of_vectors_give_an_mlp(tmp_path: Path, as_folder: bool) -> None:
    arrays = {"inputs": np.random.default_rng(0).random((60, 7)), "labels": np.arange(60) % 10}
    if as_folder:
        (tmp_path / "points").mkdir()
        for name, array in arrays.items():
            np.save(tmp_path / "points" / f"{name}.npy", array)
    else:
        np.savez(tmp_path / "points.npz", **arrays)
    spec, _ = written(tmp_path / ("points" if as_folder else "points.npz"), tmp_path)
    assert (spec.name, spec.data.kind, spec.model.backbone.kind) == ("points", "arrays", "mlp")


def test_a_folder_with_one_table_is_that_table_and_with_two_is_asked_about(tmp_path: Path) -> None:
    picture(tmp_path / "set" / "0.png", 0)
    rows = "path,label\n" + "".join(f"0.png,{label}\n" for label in "ab")
    (tmp_path / "set" / "manifest.csv").write_text(rows)
    assert data_of(tmp_path / "set").path == str(tmp_path / "set" / "manifest.csv")  # type: ignore[union-attr]
    (tmp_path / "set" / "other.csv").write_text(rows)
    with pytest.raises(DataError, match=r"holds 2 tables \(manifest\.csv, other\.csv\): name the one"):
        data_of(tmp_path / "set")


def test_many_classes_fill_32_x_4_and_ten_large_ones_8_x_16(tmp_path: Path) -> None:
    def chosen(classes: int, each: int) -> tuple[int, int, int]:
        labels = np.repeat(np.arange(classes), each)
        splits = np.where(labels < classes - 2, "train", "test")
        np.savez(
            tmp_path / "points.npz",
            inputs=np.random.default_rng(0).random((len(labels), 2)),
            labels=labels,
            splits=splits,
        )
        numbers = choose(survey(data_of(tmp_path / "points.npz"), tmp_path))
        return numbers.classes, numbers.samples, numbers.virtual_workers

    assert chosen(100, 6) == (32, 4, 8)
    assert chosen(12, 40) == (8, 16, 8)
    assert chosen(100, 1) == (32, 2, 8)
    assert chosen(5, 3) == (2, 2, 1)


def test_data_that_cannot_train_is_refused_and_nothing_written(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", inputs=np.ones((4, 2)), labels=np.arange(4), splits=["train"] + ["test"] * 3)
    with pytest.raises(DataError, match="1 classes are of the split train, and a batch needs at least 2"):
        write_spec(data_of(tmp_path / "a.npz"), tmp_path / "spec.yaml", tmp_path)
    (tmp_path / "b.csv").write_text("name,label\nx,y\n")
    with pytest.raises(DataError, match="has the columns label, name: a manifest has label, and path, bytes or text"):
        data_of(tmp_path / "b.csv")
    with pytest.raises(DataError, match="no such file or folder"):
        data_of(tmp_path / "none")
    assert not (tmp_path / "spec.yaml").exists()


def test_the_command_writes_a_spec_once_that_validate_accepts(tmp_path: Path) -> None:
    root, spec = class_folders(tmp_path / "no", classes=6, each=3), tmp_path / "spec.yaml"
    command = ["init", str(root), "--out", str(spec)]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["kind"] == "image_folder"
    assert CliRunner().invoke(app, ["validate", str(spec)]).exit_code == 0
    assert load_spec(spec).name == "no"  # which plain YAML would read as false
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 2
    with pytest.raises(SpecError, match="is there already: remove it, or choose another file"):
        write_spec(data_of(root), spec, tmp_path)
