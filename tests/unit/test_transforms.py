"""Preprocessing of every kind of picture, and augmentation keyed by (seed, step, row)."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raydml.data import Preprocessing
from raydml.data.augment import Augmentation
from raydml.errors import DataError
from raydml.spec import AugmentSpec

COLOUR = Preprocessing.for_images(4, grayscale=False)
GREY = Preprocessing.for_images(4, grayscale=True)
ALL = AugmentSpec(shift=0.2, rotate=20, scale=0.2, flip=True, brightness=0.3, contrast=0.3, noise=0.1)


def test_preprocessing_survives_json() -> None:
    for preprocessing in (COLOUR, GREY, Preprocessing("vector", (7,))):
        assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing


def test_transparent_pixels_become_white() -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 2, 4))
    for source in (image, np.asarray(image), image.quantize()):
        array = COLOUR.decode(source)
        assert array[0, 0].tolist() == [255, 0, 0]
        assert array[0, 3].tolist() == [255, 255, 255]


def test_palettes_are_looked_up() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert COLOUR.decode(image)[2, 2].tolist() == [10, 20, 30]


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    values = np.array([[0, 257, 128 * 257, 65535]] * 4, np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    for source in (tmp_path / "deep.png", Image.fromarray(values.astype(np.int32))):
        assert GREY.decode(source)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 4), "white")
    image.paste((0, 0, 0), (0, 0, 4, 2))  # black above
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: what is above comes to the right
    image.save(tmp_path / "turned.png", exif=exif)
    array = GREY.decode(str(tmp_path / "turned.png"))[..., 0]
    assert (array[:, 2:] == 0).all()
    assert (array[:, :2] == 255).all()


def test_a_large_picture_is_averaged_not_sampled() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    assert np.abs(GREY.decode(stripes).astype(int) - 127).max() < 12


@pytest.mark.parametrize("mode", ["1", "L", "LA", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"])
def test_every_mode_gives_the_same_shape(mode: str) -> None:
    image = Image.new(mode, (9, 5))
    assert COLOUR.decode(image).shape == (4, 4, 3)
    assert GREY.decode(image).shape == (4, 4, 1)


def test_bytes_paths_and_pictures_give_the_same_array(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    arrays = [COLOUR.decode(source) for source in (image, tmp_path / "a.png", (tmp_path / "a.png").read_bytes())]
    assert all((array == arrays[0]).all() for array in arrays)


def test_a_tensor_is_normalised_by_one_half() -> None:
    array = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    tensor = COLOUR.tensor(array)
    expected = (torch.from_numpy(array).permute(2, 0, 1).double() / 255 - 0.5) / 0.5
    assert tensor.dtype == torch.float32
    torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(COLOUR.tensor(array[None])[0], tensor)


def test_what_is_not_a_picture_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    content = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(content, "png")
    (tmp_path / "cut.png").write_bytes(content.getvalue()[:2000])
    reasons = {"empty.png": "is empty", "text.png": "not an image", "cut.png": "truncated", "gone.png": "no such file"}
    for name, reason in reasons.items():
        with pytest.raises(DataError, match=rf"{name} .*{reason}"):
            COLOUR.decode(tmp_path / name)
    for source, reason in ((np.zeros((4, 4)), "uint8, not float64"), (Image.new("F", (4, 4)), "floating-point")):
        with pytest.raises(DataError, match=reason):
            COLOUR.decode(source)


def test_vectors_must_have_their_shape_and_be_finite() -> None:
    vector = Preprocessing("vector", (2,))
    assert vector.tensor(vector.decode(np.array([1.5, 2.5]))).tolist() == [1.5, 2.5]
    for source, reason in (
        (np.zeros(3), r"\(2,\), not \(3,\)"),
        (np.array([1.0, np.nan]), "1 values that are NaN"),
        (b"x", "not the bytes given"),
    ):
        with pytest.raises(DataError, match=reason):
            vector.decode(source)


def images(channels: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, size, size, channels), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_depends_on_seed_step_and_row_alone(channels: int) -> None:
    batch, rows = images(channels), np.arange(6)
    whole = Augmentation(ALL, 1).images(batch, 5, rows)
    parts = [Augmentation(ALL, 1).images(batch[[row]], 5, rows[[row]])[0] for row in (3, 0, 5)]
    assert all((part == whole[row]).all() for part, row in zip(parts, (3, 0, 5), strict=True))
    assert whole.shape == batch.shape
    assert whole.dtype == np.uint8
    for seed, step, shifted in ((2, 5, rows), (1, 6, rows), (1, 5, rows + 1)):
        assert (Augmentation(ALL, seed).images(batch, step, shifted) != whole).any()


def test_noise_depends_on_seed_step_and_row_alone_and_has_its_deviation() -> None:
    zeros, rows = np.zeros((6, 1, 64, 64), np.float32), np.arange(6)
    noisy = Augmentation(ALL, 1).inputs(zeros, 5, rows)
    assert (Augmentation(ALL, 1).inputs(zeros[[4]], 5, rows[[4]])[0] == noisy[4]).all()
    assert noisy.std() == pytest.approx(0.1, rel=0.05)
    assert not zeros.any()


def test_each_change_stays_within_its_bound() -> None:
    dot = np.full((400, 33, 33, 1), 255, np.uint8)
    dot[:, 16, 16] = 0
    moved = Augmentation(AugmentSpec(shift=0.25), 0).images(dot, 0, np.arange(400))
    ink = 255.0 - moved[..., 0]
    centre = (ink * np.arange(33)).sum((1, 2)) / ink.sum((1, 2)) - 16
    assert np.abs(centre).max() <= 0.25 * 33 + 0.6
    assert centre.min() < -7
    assert centre.max() > 7

    grey = np.full((400, 8, 8, 1), 100, np.uint8)
    bright = Augmentation(AugmentSpec(brightness=0.5), 0).images(grey, 0, np.arange(400))
    assert bright.min() in range(50, 53)
    assert bright.max() in range(148, 151)
    assert (Augmentation(AugmentSpec(contrast=0.5), 0).images(grey, 0, np.arange(400)) == 100).all()

    half = np.zeros((400, 8, 8, 1), np.uint8)
    half[:, :, :4] = 255
    mirrored = Augmentation(AugmentSpec(flip=True), 0).images(half, 0, np.arange(400))[:, 0, 0, 0] == 0
    assert 160 < mirrored.sum() < 240


def test_rotation_and_scale_keep_the_centre_and_fill_with_the_corner_colour() -> None:
    ring = np.full((50, 33, 33, 3), (10, 200, 30), np.uint8)
    ring[:, 12:21, 12:21] = 0
    turned = Augmentation(AugmentSpec(rotate=180, scale=0.5), 0).images(ring, 0, np.arange(50))
    assert (turned[:, 16, 16] == 0).all()
    assert (turned[:, [0, 0, -1, -1], [0, -1, 0, -1]] == (10, 200, 30)).all()
    area = (turned[..., 0] < 5).sum((1, 2)) / 81
    assert area.min() > 0.2
    assert area.max() < 2.4


def test_without_options_nothing_changes() -> None:
    batch = images(1)
    assert Augmentation(AugmentSpec(), 0).images(batch, 0, np.arange(6)) is batch
