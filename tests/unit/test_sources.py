"""Every source: the same items from every form, and every wrong input named."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from raydml.data import Dataset, open_dataset
from raydml.data.contents import Decoded
from raydml.data.preprocessing import Preprocessing
from raydml.data.splits import split_classes, split_of
from raydml.errors import DataError, SpecError
from raydml.spec import ArraysData, AugmentSpec, CustomData, DataSpec, GlyphsData, ImageFolderData, ManifestData


def picture(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def opened(spec: DataSpec, tmp_path: Path, custom: object | None = None) -> Dataset:
    return open_dataset(spec, tmp_path / "home", custom=custom)


def items_equal(one: Dataset, other: Dataset) -> bool:
    a, b = one.items, other.items
    arrays = ("labels", "splits", "is_query", "is_gallery")
    rest = (a.ids, a.class_names, a.payloads) == (b.ids, b.class_names, b.payloads)
    return rest and all((getattr(a, name) == getattr(b, name)).all() for name in arrays)


# Glyphs


@pytest.fixture(scope="module")
def glyph_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("glyphs")


@pytest.fixture(scope="module")
def glyphs(glyph_home: Path) -> Dataset:
    return open_dataset(GlyphsData(), glyph_home)


def test_glyphs_have_their_published_figures(glyphs: Dataset) -> None:
    assert len(glyphs.items.ids) == 34_501
    assert len(glyphs.items.class_names) == 3_114
    assert glyphs.report.images == {"train": 20_543, "validation": 3_430, "test": 10_528}
    assert glyphs.report.classes == {"train": 1_853, "validation": 309, "test": 952}
    assert glyphs.num_training_classes == 1_853
    assert (glyphs.report.shared_classes, glyphs.report.skipped) == (0, ())
    assert glyphs.input_shape == (1, 32, 32)


def test_a_glyph_is_black_on_white_and_says_what_it_is(glyphs: Dataset) -> None:
    item = glyphs.items.ids.index("U+0034/DejaVuSans")
    assert glyphs.items.payloads[item] == {"label": "4", "codepoint": "U+0034", "face": "DejaVuSans"}
    assert glyphs.items.class_names[glyphs.items.labels[item]] == "4"
    assert glyphs.items.splits[item] == split_of("52")
    image = glyphs.read(item)
    assert image.shape == (32, 32, 1)
    assert image[0, 0, 0] == 255
    assert image.min() < 50


def test_glyphs_are_drawn_once_and_again_when_the_file_is_damaged(glyphs: Dataset, glyph_home: Path) -> None:
    path = next((glyph_home / "data").iterdir())
    content = path.read_bytes()
    written = path.stat().st_mtime_ns
    assert open_dataset(GlyphsData(), glyph_home).fingerprint == glyphs.fingerprint
    assert path.stat().st_mtime_ns == written
    path.write_bytes(content[:-1000])
    assert open_dataset(GlyphsData(), glyph_home).fingerprint == glyphs.fingerprint
    assert path.read_bytes() == content


# Folders


def folder(tmp_path: Path) -> Path:
    for number in range(3):
        for name in ("ant", "bee", "cat"):
            picture(tmp_path / "pictures" / name / f"{number}.png", seed=hash_of(name) + number)
    return tmp_path / "pictures"


def hash_of(name: str) -> int:
    return sum(map(ord, name)) * 100


def test_a_folder_of_classes_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    root = folder(tmp_path)
    (root / "ant" / ".hidden").write_text("not a picture")
    dataset = opened(ImageFolderData(path=str(root), image_size=8), tmp_path)
    assert dataset.items.ids == tuple(f"{name}/{number}.png" for name in ("ant", "bee", "cat") for number in range(3))
    assert dataset.items.class_names == ("ant", "bee", "cat")
    assert dataset.items.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert dataset.report.classes == {"train": 2, "validation": 0, "test": 1}
    assert dataset.read(4).shape == (8, 8, 3)
    assert dataset.items.is_query.all()
    assert dataset.items.is_gallery.all()


def test_training_labels_have_no_gaps_and_match_the_training_items(tmp_path: Path) -> None:
    dataset = opened(ImageFolderData(path=str(folder(tmp_path)), image_size=8), tmp_path)
    train = dataset.indices("train")
    assert sorted(set(dataset.training_labels.tolist())) == [0, 1]
    assert len(set(zip(dataset.items.labels[train].tolist(), dataset.training_labels.tolist(), strict=True))) == 2
    assert dataset.indices("all").tolist() == list(range(9))
    with pytest.raises(DataError, match="no split 'dev'"):
        dataset.indices("dev")


def test_split_folders_decide_the_split_and_shared_classes_and_twins_are_reported(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    for split, seed in (("train", 0), ("validation", 10), ("test", 1)):
        for number, name in enumerate(("ant", "bee")):
            picture(root / split / name / "0.png", seed + number)
    dataset = opened(ImageFolderData(path=str(root), image_size=8), tmp_path)
    assert dataset.report.images == {"train": 2, "validation": 2, "test": 2}
    assert dataset.report.shared_classes == 2
    assert dataset.report.num_duplicates == 1
    assert dataset.report.duplicates == (("train/bee/0.png", "test/ant/0.png"),)
    assert json.loads(json.dumps(dataset.report.to_dict()))["shared_classes"] == 2
    picture(root / "val" / "ant" / "0.png", 0)
    with pytest.raises(DataError, match="train beside val"):
        opened(ImageFolderData(path=str(root)), tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "is empty"), (b"hello", "not an image"), (b"\x89PNG\r\n\x1a\n", "not an image")]
)
def test_a_bad_file_is_named_or_skipped_and_counted(tmp_path: Path, content: bytes, reason: str) -> None:
    root = folder(tmp_path)
    bad = root / "bee" / "1.png"
    bad.write_bytes(content)
    with pytest.raises(DataError, match=rf"bee/1.png .*{reason}.*on_bad_item: skip"):
        opened(ImageFolderData(path=str(root)), tmp_path)
    dataset = opened(ImageFolderData(path=str(root), on_bad_item="skip"), tmp_path)
    assert len(dataset.items.ids) == 8
    assert "bee/1.png" not in dataset.items.ids
    [(name, why)] = dataset.report.skipped
    assert name == str(bad)
    assert reason in why
    good = Preprocessing.for_images(32, False).decode(root / "bee" / "2.png")
    assert (dataset.read(dataset.items.ids.index("bee/2.png")) == good).all()


def test_folders_without_pictures_or_with_one_class_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty" / "class").mkdir(parents=True)
    picture(tmp_path / "single" / "class" / "0.png", 0)
    for name, reason in (("gone", "not a folder"), ("empty", "no class folders"), ("single", "one class 'class'")):
        with pytest.raises(DataError, match=reason):
            opened(ImageFolderData(path=str(tmp_path / name)), tmp_path)
    root = folder(tmp_path)
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no item is left of 9"):
        opened(ImageFolderData(path=str(root), on_bad_item="skip"), tmp_path)


def test_a_pickled_dataset_reads_the_same_without_carrying_pictures(tmp_path: Path) -> None:
    dataset = opened(ImageFolderData(path=str(folder(tmp_path)), image_size=128), tmp_path)
    content = pickle.dumps(dataset)
    assert len(content) < 10_000
    copy = pickle.loads(content)
    assert torch.equal(copy.tensors([3, 1]), dataset.tensors([3, 1]))
    assert copy.fingerprint == dataset.fingerprint


def test_pictures_beyond_the_memory_budget_are_decoded_again(tmp_path: Path) -> None:
    paths = sorted(folder(tmp_path).rglob("*.png"))
    paths[1].write_bytes(b"")
    preprocessing = Preprocessing.for_images(8, False)
    contents = Decoded(paths, [str(path) for path in paths], preprocessing, cache_bytes=3 * 8 * 8 * 3)
    assert contents.check(skip=True).kept == [0, 2, 3, 4, 5, 6, 7, 8]
    for item, path in enumerate([paths[0], *paths[2:]]):
        assert (contents.read(item) == preprocessing.decode(path)).all()
    paths[2].unlink()
    contents.read(1)  # in memory
    paths[8].unlink()
    with pytest.raises(DataError, match=r"cat/2\.png .*no such file"):
        contents.read(7)


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    root = folder(tmp_path)
    spec = ImageFolderData(path=str(root), image_size=8)
    before = opened(spec, tmp_path).fingerprint
    assert opened(spec, tmp_path).fingerprint == before
    picture(root / "ant" / "0.png", 999)
    assert opened(spec, tmp_path).fingerprint != before


# Manifests

ROWS: list[dict[str, Any]] = [
    {
        "path": f"img/{number}.png",
        "label": str(number % 3),
        "split": ("train", "train", "test")[number % 3],
        "is_query": "true" if number < 3 else "false",
        "is_gallery": "1",
        "sequence": f"s{number}",
        "note": "",
    }
    for number in range(6)
]


def manifest(tmp_path: Path, rows: list[dict[str, Any]], suffix: str = ".csv") -> ManifestData:
    for number in range(6):
        if not (tmp_path / "img" / f"{number}.png").exists():
            picture(tmp_path / "img" / f"{number}.png", number)
    path = tmp_path / f"table{suffix}"
    if suffix == ".csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return ManifestData(path=str(path), image_size=8)


def test_a_manifest_gives_the_same_items_in_its_three_formats(tmp_path: Path) -> None:
    datasets = [opened(manifest(tmp_path, ROWS, suffix), tmp_path) for suffix in (".csv", ".jsonl", ".parquet")]
    assert all(items_equal(datasets[0], other) for other in datasets[1:])
    assert len({dataset.fingerprint for dataset in datasets}) == 1
    items = datasets[0].items
    assert items.ids[4] == "img/4.png"
    assert items.payloads[4] == {"label": "1", "sequence": "s4"}
    assert items.is_query.tolist() == [True] * 3 + [False] * 3
    assert items.is_gallery.all()
    assert datasets[0].report.images == {"train": 4, "validation": 0, "test": 2}


def test_labels_are_text_and_numbers_stand_in_their_order(tmp_path: Path) -> None:
    rows = [{"path": f"img/{n}.png", "label": label, "split": "train"} for n, label in enumerate([10, 9, 2, 10, 9, 2])]
    dataset = opened(manifest(tmp_path, rows, ".parquet"), tmp_path)
    assert dataset.items.class_names == ("2", "9", "10")
    assert dataset.items.labels.tolist() == [2, 1, 0, 2, 1, 0]


def without(column: str) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != column} for row in ROWS]


def changed(**values: Any) -> list[dict[str, Any]]:
    return [*ROWS[:5], ROWS[5] | values]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (without("label"), "no column 'label'.* its columns are: .*path.*split"),
        (without("path"), "no column 'path'"),
        (changed(label=""), r"1 rows have no label: rows 5"),
        (changed(split=""), r"1 rows have no split: rows 5"),
        (changed(split="dev"), r"row 5 \(img/5.png\) is of split 'dev': choose from train, validation, test"),
        (changed(is_query="perhaps"), "row 5 has is_query = 'perhaps'"),
        (changed(path="../img/5.png"), "row 5 names '../img/5.png', outside"),
        (changed(path="img/../../x.png"), "outside"),
        (changed(path="/etc/hostname"), "row 5 names '/etc/hostname', outside"),
        (changed(path="link/5.png"), "outside"),
        (changed(path="img/9.png"), r"img/9.png .*no such file.*on_bad_item: skip"),
        (changed(path="img/0.png"), "id 'img/0.png' stands 2 times"),
    ],
)
def test_a_wrong_row_is_refused_with_its_number(tmp_path: Path, rows: list[dict[str, Any]], reason: str) -> None:
    (tmp_path / "inside").mkdir()
    picture(tmp_path / "outside" / "5.png", 5)
    (tmp_path / "inside" / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match=reason):
        opened(manifest(tmp_path / "inside", rows), tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("t.csv", b"", "has no rows"),
        ("t.csv", b"path,label\na.png,x,y\n", "row 0 has more cells than the header"),
        ("t.csv", b"path,label\n\xff\xfe,x\n", "cannot be read as csv"),
        ("t.jsonl", b"{]\n", "cannot be read as jsonl"),
        ("t.jsonl", b"[1]\n", "row 0 is not an object"),
        ("t.parquet", b"hello", "cannot be read as parquet"),
        ("t.txt", b"hello", r"a manifest is a file named .csv, .jsonl, .parquet, not .txt"),
        ("t.jsonl", None, "no such file"),
    ],
)
def test_a_wrong_table_is_refused_with_its_name(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}.*{reason}|{reason}"):
        opened(ManifestData(path=str(tmp_path / name)), tmp_path)


# Arrays


def test_arrays_of_pictures_are_the_same_in_one_file_and_in_a_folder(tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).integers(0, 256, (9, 8, 8), dtype=np.uint8)
    labels = np.arange(9) % 3
    np.savez(tmp_path / "a.npz", inputs=inputs, labels=labels)
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "inputs.npy", inputs)
    np.save(tmp_path / "a" / "labels.npy", labels)
    one, other = (
        opened(ArraysData(path=str(tmp_path / n), image_size=8, grayscale=True), tmp_path) for n in ("a.npz", "a")
    )
    assert items_equal(one, other)
    assert one.fingerprint == other.fingerprint
    assert (one.read(3)[..., 0] == inputs[3]).all()
    raw = one.raw([3, 5])
    np.testing.assert_allclose(raw, inputs[[3, 5]].reshape(2, 64) / 255, rtol=1e-6)
    assert opened(ArraysData(path=str(tmp_path / "a.npz"), image_size=4), tmp_path).tensors([0]).shape == (1, 3, 4, 4)


def test_arrays_of_vectors_pass_unchanged(tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).normal(size=(6, 5))
    splits = ["train", "train", "validation", "validation", "test", "test"]
    np.savez(
        tmp_path / "a.npz", inputs=inputs, labels=np.array(list("aabbcc")), splits=splits, ids=np.array(list("uvwxyz"))
    )
    dataset = opened(ArraysData(path=str(tmp_path / "a.npz")), tmp_path)
    assert dataset.input_shape == (5,)
    assert dataset.items.ids == tuple("uvwxyz")
    assert dataset.indices("validation").tolist() == [2, 3]
    np.testing.assert_array_equal(dataset.tensors([1, 4]).numpy(), inputs[[1, 4]].astype(np.float32))
    np.testing.assert_array_equal(dataset.raw([1, 4]), inputs[[1, 4]].astype(np.float32))
    assert dataset.tensors([]).shape == (0, 5)
    assert dataset.raw([]).shape == (0, 5)
    with pytest.raises(SpecError, match="noise alone"):
        opened(ArraysData(path=str(tmp_path / "a.npz"), augment=AugmentSpec(flip=True)), tmp_path)


def test_rows_with_nan_are_named_or_skipped(tmp_path: Path) -> None:
    inputs = np.ones((9, 2)) * np.arange(9)[:, None]
    inputs[4, 1], inputs[7, 0], inputs[8, 0] = np.nan, np.inf, 1e300
    np.savez(tmp_path / "a.npz", inputs=inputs, labels=np.arange(9) % 3)
    with pytest.raises(DataError, match="3 rows of inputs hold NaN or infinite values: rows 4, 7, 8"):
        opened(ArraysData(path=str(tmp_path / "a.npz")), tmp_path)
    dataset = opened(ArraysData(path=str(tmp_path / "a.npz"), on_bad_item="skip"), tmp_path)
    assert dataset.items.ids == ("0", "1", "2", "3", "5", "6")
    assert dataset.read(4).tolist() == [5, 5]
    assert [name for name, _ in dataset.report.skipped] == ["row 4", "row 7", "row 8"]


GOOD = {"inputs": np.ones((4, 2)), "labels": np.arange(4)}


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"inputs": np.ones((4, 2))}, "no array 'labels'; its arrays are: inputs"),
        (GOOD | {"labels": np.arange(3)}, r"labels has shape \(3,\), but inputs has 4 rows"),
        (GOOD | {"labels": np.ones(4)}, "labels are float64"),
        (GOOD | {"labels": np.array([{}] * 4)}, "Object arrays cannot be loaded|allow_pickle"),
        (GOOD | {"inputs": np.ones((4, 2), np.int64)}, r"inputs are int64 of shape \(4, 2\)"),
        (GOOD | {"splits": np.array(["train"] * 3 + ["dev"])}, "split 'dev'"),
        (GOOD | {"ids": np.array(["a", "b", "a", "c"])}, "id 'a' stands 2 times"),
        ({"inputs": np.ones((0, 2)), "labels": np.arange(0)}, "holds no items"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], reason: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=reason):
        opened(ArraysData(path=str(tmp_path / "a.npz")), tmp_path)


def test_a_file_that_holds_no_arrays_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").touch()
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04hello")
    np.save(tmp_path / "single.npy", np.ones(3))
    for name in ("text.npz", "empty.npz", "cut.npz", "single.npy", "gone.npz"):
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            opened(ArraysData(path=str(tmp_path / name)), tmp_path)


# Custom


class Entries:
    """A map-style dataset of given inputs, with labels in the entries."""

    def __init__(self, inputs: list[Any], labels: list[int]) -> None:
        self.inputs, self.answers = inputs, labels

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        return self.inputs[number], self.answers[number]


LABELS = [0, 0, 1, 1, 2, 2]


def test_a_custom_dataset_of_pictures_equals_one_of_arrays(tmp_path: Path) -> None:
    arrays = list(np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8))
    one = opened(CustomData(), tmp_path, Entries(arrays, LABELS))
    other = opened(CustomData(), tmp_path, Entries([Image.fromarray(array) for array in arrays], LABELS))
    assert one.input_shape == (3, 8, 8)
    assert one.fingerprint == other.fingerprint
    assert (one.read(2) == arrays[2]).all()


@pytest.mark.parametrize("shape", [(5,), (1, 4, 4)])
def test_a_custom_dataset_of_tensors_passes_them_unchanged(tmp_path: Path, shape: tuple[int, ...]) -> None:
    inputs = torch.randn(6, *shape, generator=torch.Generator().manual_seed(0))
    custom = torch.utils.data.TensorDataset(inputs, torch.tensor(LABELS))
    dataset = opened(CustomData(), tmp_path, custom)
    assert dataset.input_shape == shape
    assert torch.equal(dataset.tensors([1, 5]), inputs[[1, 5]])
    assert dataset.items.labels.tolist() == LABELS


def test_a_custom_dataset_may_carry_targets_and_splits(tmp_path: Path) -> None:
    custom = Entries([torch.ones(2) * number for number in range(6)], [9] * 6)
    custom.targets = torch.tensor(LABELS)  # type: ignore[attr-defined]
    custom.splits = ["train"] * 4 + ["test"] * 2  # type: ignore[attr-defined]
    dataset = opened(CustomData(), tmp_path, custom)
    assert dataset.items.class_names == ("0", "1", "2")
    assert dataset.report.images == {"train": 4, "validation": 0, "test": 2}
    custom.targets = torch.tensor([0, 1])  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="targets has 2 entries, but the dataset has 6"):
        opened(CustomData(), tmp_path, custom)


def test_a_wrong_custom_dataset_is_refused(tmp_path: Path) -> None:
    for custom, error, reason in (
        (None, SpecError, "no dataset was handed over"),
        (iter([]), SpecError, "map-style"),
        (Entries([], []), DataError, "is empty"),
        (Entries(["text"] * 6, LABELS), DataError, "item 0 is a str"),
        (Entries([np.ones(3, np.int64)] * 6, LABELS), DataError, "item 0 is int64"),
        (Entries([*[torch.ones(2)] * 5, torch.ones(3)], LABELS), DataError, r"item 5: .*\(2,\), not \(3,\)"),
        (
            Entries([*[torch.ones(2)] * 5, torch.full((2,), torch.nan)], LABELS),
            DataError,
            "item 5: .*2 values that are NaN",
        ),
    ):
        with pytest.raises(error, match=reason):
            opened(CustomData(), tmp_path, custom)
    with pytest.raises(SpecError, match=r"data\.kind is glyphs"):
        opened(GlyphsData(), tmp_path, Entries([torch.ones(2)] * 6, LABELS))


# Splits


def test_classes_are_divided_the_same_way_in_any_order() -> None:
    names = [f"class {number}" for number in range(1000)]
    splits = split_classes(names)
    assert splits == split_classes(reversed(names))
    assert splits == {name: split_of(name) for name in names}
    counts = [list(splits.values()).count(split) for split in ("train", "validation", "test")]
    assert np.abs(np.array(counts) - (600, 100, 300)).max() < 50


def test_few_classes_still_fill_the_splits() -> None:
    for size in range(3, 40):
        values = list(split_classes(f"class {number}" for number in range(size)).values())
        assert values.count("train") >= 2
        assert values.count("test") >= 1
        assert values.count("validation") >= (size > 3)
    with pytest.raises(DataError, match="2 classes cannot be divided"):
        split_classes(["a", "b"])
