"""Decoded training images and their keys in; randomly changed inputs out, each a pure function of (seed, step, row)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raydml.data.randomness import stream_key, uniforms
from raydml.spec import AugmentSpec

_DRAWS = 7  # numbers a row uses: shift x, shift y, angle, scale, flip, brightness, contrast


class Augmentation:
    """The random changes that `spec` asks for.

    Geometry is one affine map (shift, rotation, scale together), where what comes from outside takes the colour of
    the top left pixel; then flip, brightness and contrast, all on uint8; noise goes on the normalised input.
    """

    def __init__(self, spec: AugmentSpec, seed: int) -> None:
        self.spec = spec
        self.seed = seed

    def images(self, images: NDArray[np.uint8], step: int, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(n, H, W, C) changed copies; rows: (n,) rows of the global batch."""
        if self.spec == AugmentSpec(noise=self.spec.noise):
            return images
        key = stream_key(self.seed, "augment", step)
        draws = 2 * uniforms(key, rows[:, None] * _DRAWS + np.arange(_DRAWS)) - 1  # (n, 7) in [-1, 1)
        spec = self.spec
        if spec.shift or spec.rotate or spec.scale:
            images = self._moved(images, draws[:, :4])
        if spec.flip:
            images = np.where(draws[:, 4, None, None, None] < 0, images[:, :, ::-1], images)
        if spec.brightness or spec.contrast:
            images = _toned(images, 1 + spec.brightness * draws[:, 5], 1 + spec.contrast * draws[:, 6])
        return images

    def inputs(self, inputs: NDArray[Any], step: int, rows: NDArray[np.int64]) -> NDArray[Any]:
        """(n, ...) normalised inputs, with Gaussian noise where the spec asks for it."""
        if not self.spec.noise:
            return inputs
        bits = np.random.Philox(key=[stream_key(self.seed, "noise", step), 0])
        start, generator = bits.state, np.random.Generator(bits)
        noise = np.empty_like(inputs)
        for target, row in zip(noise, rows.tolist(), strict=True):
            start["state"]["key"][1] = row
            bits.state = start  # far cheaper than a generator for each row, and the same numbers
            generator.standard_normal(dtype=np.float32, out=target)
        return np.asarray(inputs + np.float32(self.spec.noise) * noise)

    def _moved(self, images: NDArray[np.uint8], draws: NDArray[np.float64]) -> NDArray[np.uint8]:
        """draws: (n, 4) in [-1, 1) for x, y, angle and scale."""
        spec = self.spec
        moves = draws * (spec.shift, spec.shift, spec.rotate, spec.scale)
        moved = np.empty_like(images)
        for target, image, (x, y, degrees, scale) in zip(moved, images, moves.tolist(), strict=True):
            target[...] = _affine(image, x, y, degrees, 1 + scale)
        return moved


def _affine(image: NDArray[np.uint8], x: float, y: float, degrees: float, scale: float) -> NDArray[np.uint8]:
    """Turn about the centre, scale, and move by fractions x and y of the size; bilinear."""
    height, width = image.shape[:2]
    cosine, sine = math.cos(math.radians(degrees)) / scale, math.sin(math.radians(degrees)) / scale
    centre_x, centre_y = width / 2, height / 2
    from_x, from_y = centre_x + x * width, centre_y + y * height  # Pillow maps output pixels to input pixels
    matrix = (
        *(cosine, sine, centre_x - cosine * from_x - sine * from_y),
        *(-sine, cosine, centre_y + sine * from_x - cosine * from_y),
    )
    grey = image.shape[2] == 1
    corner: Any = image[0, 0].tolist()
    picture = Image.frombytes("L" if grey else "RGB", (width, height), image.tobytes())  # cheaper than fromarray
    moved = picture.transform(
        (width, height),
        Image.Transform.AFFINE,
        matrix,
        resample=Image.Resampling.BILINEAR,
        fillcolor=corner[0] if grey else tuple(corner),
    )
    return np.frombuffer(moved.tobytes(), np.uint8).reshape(image.shape)


def _toned(
    images: NDArray[np.uint8], brightness: NDArray[np.float64], contrast: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """contrast * (brightness * x - m) + m, with m an image's mean of brightness * x; rounded and cut to 0..255."""
    flat = images.reshape(len(images), -1)
    means = (brightness * flat.mean(axis=1))[:, None]  # a sum of whole numbers: exact in any order
    tables = contrast[:, None] * (brightness[:, None] * np.arange(256) - means) + means  # (n, 256)
    values = np.take_along_axis(np.rint(tables).clip(0, 255).astype(np.uint8), flat.astype(np.intp), axis=1)
    return values.reshape(images.shape)
